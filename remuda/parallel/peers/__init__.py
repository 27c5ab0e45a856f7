"""What GPUs of one host do with each other's memory: all-reduces, hops and token returns in single kernels."""
