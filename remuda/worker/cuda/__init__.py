"""The runner of a rank whose device is a GPU, and what it keeps there."""
