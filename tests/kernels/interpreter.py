"""Triton's interpreter on CPU, which `tests/conftest.py` switches on: import this before running a Triton kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor
_dot = interpreter.InterpreterBuilder.create_dot


def _patch_tensor_for_new_numpy(tensor: Any, scope: Any) -> None:
    """Numpy 2.4 no longer makes an int of an array of one element, which is what the interpreter's scalars are."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def _widened(x: Any) -> Any:
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle(
        interpreter._convert_float(x.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32
    )


def _dot_of_bfloat16(self: Any, a: Any, b: Any, *args: Any) -> Any:
    """The interpreter keeps bfloat16 as its bits and would multiply those."""
    return _dot(self, _widened(a), _widened(b), *args)


interpreter._patch_lang_tensor = _patch_tensor_for_new_numpy
interpreter.InterpreterBuilder.create_dot = _dot_of_bfloat16
