"""Kernels in plain C (AVX-512 and AMX, bf16), built by the user's own compiler into a cached shared object.

`build` makes the object, `runtime` loads it into a process, the `native.py` of each operation's folder calls it.
Until it is loaded, and where processor or compiler lack what it takes, torch serves.
"""
