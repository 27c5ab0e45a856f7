"""From logits, or hidden states, to the likeliest id of each row without gathering logits."""
