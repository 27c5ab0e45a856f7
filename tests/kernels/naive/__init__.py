"""Every operation of the kernel table once more, in loops that a reader believes at sight; float64, slow."""
