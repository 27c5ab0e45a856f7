"""Build the native kernels: one gcc call, cached by what goes into it. Imports no torch.

Any number of processes may ask at once: a file lock lets one compile, and the object appears by an atomic rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from enum import Enum
from functools import cache
from pathlib import Path

from remuda.protocol.errors import ConfigError

_SOURCES = Path(__file__).parent
_CPU_FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512_bf16")
_AMX_FLAGS = ("amx_tile", "amx_bf16")
_OPTIONS = (
    "-std=gnu11", "-O3", "-march=x86-64-v4", "-mavx512bf16", "-mavx512vbmi", "-mprfchw", "-mtune=sapphirerapids",
    "-fno-math-errno", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra",
)  # fmt: skip
_LIBRARIES = ("-lpthread", "-lm")


class Target(Enum):
    """What products of many rows are computed with, by the options that say so to the compiler."""

    AVX512 = ()
    AMX = ("-DREMUDA_AMX",)


class NativeUnavailable(ConfigError):
    """The native kernels cannot be built or used here. The message says what is missing."""


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remuda"


@cache
def unavailable_reason() -> str | None:
    """Why this machine cannot have the native kernels; None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they are written for Linux on x86-64, not {sys.platform} on {platform.machine()}"
    missing = [flag for flag in _CPU_FLAGS if flag not in _processor_flags()]
    if missing:
        return f"the processor lacks {', '.join(missing)}"
    if _compiler() is None:
        return "no C compiler was found (install gcc 11 or newer)"
    return None


def targets() -> list[Target]:
    """What this processor can run, the fastest first."""
    has_amx = _processor_flags().issuperset(_AMX_FLAGS)
    return [Target.AMX, Target.AVX512] if has_amx else [Target.AVX512]


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def _options(target: Target | None) -> list[str]:
    return [*_OPTIONS, *(target or targets()[0]).value]


def _source_files() -> list[Path]:
    return sorted(_SOURCES.glob("*.c"))


@cache
def library_path(cache_dir: Path | None = None, target: Target | None = None) -> Path:
    """Where the object for these sources, options, compiler and target is, or will be."""
    compiler = _compiler()
    if compiler is None:
        raise NativeUnavailable("no C compiler was found: install gcc 11 or newer, or serve with --native-kernels off")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    digest = hashlib.sha256(version + repr(_options(target)).encode())
    for path in [*_source_files(), *sorted(_SOURCES.glob("*.h"))]:
        digest.update(path.read_bytes())
    return (cache_dir or default_cache_dir()) / f"native-{digest.hexdigest()[:16]}.so"


def build(cache_dir: Path | None = None, target: Target | None = None) -> Path:
    """The path of the object (default: for the fastest target), compiled now unless it is cached.

    Raises NativeUnavailable.
    """
    if reason := unavailable_reason():
        raise NativeUnavailable(f"native kernels are not available: {reason}")
    library = library_path(cache_dir, target)
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with open(library.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile(library, target)
    except OSError as error:
        raise NativeUnavailable(
            f"the native kernels cannot be kept in {library.parent} ({error.strerror}): make it writable, free some "
            "space, or point XDG_CACHE_HOME elsewhere"
        ) from error
    return library


def _compile(library: Path, target: Target | None) -> None:
    compiler = _compiler()
    assert compiler is not None
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, *_options(target), "-o", str(made), *map(str, _source_files()), *_LIBRARIES]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            first = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr[:200])
            raise NativeUnavailable(f"the native kernels did not compile with {compiler}: {first}")
        os.replace(made, library)


class BackgroundBuild:
    """A compilation in a process of its own, at low priority. Poll it from a loop that has other things to do."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._library = library_path(cache_dir)
        self._process: subprocess.Popen[bytes] | None = None
        if not self._library.exists():
            self._process = subprocess.Popen(
                ["nice", sys.executable, "-m", __name__, str(self._library.parent)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip

    def poll(self) -> Path | None:
        """The object, or None while the compiler runs. Raises NativeUnavailable if it failed."""
        if self._process is None or self._library.exists():
            return self._library
        if self._process.poll() is None:
            return None
        _, stderr = self._process.communicate()
        if self._library.exists():
            return self._library
        raise NativeUnavailable(stderr.decode().strip() or "the build of the native kernels ended without a result")

    def close(self) -> None:
        """Stop compiling if that still goes on."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)  # the compiler too
            self._process.wait()


def build_in_background(cache_dir: Path | None = None) -> BackgroundBuild:
    """Start compiling and return at once. Raises NativeUnavailable if this machine cannot use the result."""
    if reason := unavailable_reason():
        raise NativeUnavailable(f"native kernels are not available: {reason}")
    return BackgroundBuild(cache_dir)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the half-built object is removed
    try:
        build(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    except NativeUnavailable as error:
        sys.exit(error.message)
