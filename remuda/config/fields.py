"""Typed reads of JSON that came from outside: every refusal names the file, the field and what is expected."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from remuda.protocol.errors import ConfigError

T = TypeVar("T", int, float, bool, str)
_REQUIRED: Any = object()
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ConfigError if the file is missing, unreadable or no object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: a checkpoint directory needs this file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


class Fields:
    """One JSON object of a file. Keys that are absent or null take the default; without one they are required."""

    def __init__(self, values: dict[str, Any], file: Path, section: str = "") -> None:
        self.values = values
        self.file = file
        self.section = section

    def refuse(self, key: str, reason: str) -> ConfigError:
        """The error to raise about one field of this object."""
        return ConfigError(f"{self.file}: {self.section}{key} {reason}")

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, kind: type[T], default: Any = _REQUIRED) -> T:
        """The value of `key` as `kind`; an integer is accepted where a float is asked for."""
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise self.refuse(key, f"is missing ({_NAMES[kind]} is needed)")
            return default
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            raise self.refuse(key, f"must be {_NAMES[kind]}, not {value!r}")
        return value

    def size(self, key: str, default: Any = _REQUIRED, limit: int = 1 << 31) -> int:
        """A positive integer of at most `limit`."""
        value = self.get(key, int, default)
        if value is not None and not 0 < value <= limit:
            raise self.refuse(key, f"must be an integer from 1 to {limit}, not {value}")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """An integer or a list of integers; empty if absent."""
        value = self.values.get(key)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(item) is not int for item in found):
            raise self.refuse(key, f"must be an integer or a list of integers, not {value!r}")
        return tuple(found)

    def child(self, key: str) -> Fields:
        """A nested object, required."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.refuse(key, "is missing" if value is None else f"must be an object, not {value!r}")
        return Fields(value, self.file, f"{self.section}{key}.")
