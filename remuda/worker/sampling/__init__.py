"""The pieces of the sampler: random numbers, logit adjustments, filters and draw, log-probabilities."""
