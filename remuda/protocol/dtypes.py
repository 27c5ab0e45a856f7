"""The names of dtypes, as checkpoints and torch spell them, and what one value takes. Sizes need no torch."""

from __future__ import annotations

VALUE_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
}

# A loader may cast among these, and takes others as they are.
CONVERTIBLE = frozenset({"float32", "float16", "bfloat16"})
