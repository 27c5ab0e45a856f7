"""Building the shared object: cached, once for many processes, and a clear message where it cannot be."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuda.kernels.native import build as native_build
from remuda.kernels.native.build import NativeUnavailable, Target, build, build_in_background, library_path

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def native() -> None:
    """These tests load nothing."""


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A compiler that counts its calls in a file and writes a small output."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "gcc"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo fake 1.0; exit 0; fi\n'
        f"echo called >> {tmp_path}/calls\n"
        'while [ "$1" != -o ]; do shift; done\n'
        'echo object > "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    library_path.cache_clear()
    yield script
    library_path.cache_clear()


def test_many_processes_compile_once(fake_compiler: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ranks = [FORK.Process(target=build, args=(cache,)) for _ in range(8)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(30)
    assert [rank.exitcode for rank in ranks] == [0] * 8
    assert (tmp_path / "calls").read_text() == "called\n"
    assert build(cache).read_text() == "object\n"
    assert {path.suffix for path in cache.iterdir()} == {".so", ".lock"}


def test_another_compiler_means_another_object(fake_compiler: Path, tmp_path: Path) -> None:
    first = library_path(tmp_path)
    fake_compiler.write_text(fake_compiler.read_text().replace("fake 1.0", "fake 2.0"))
    library_path.cache_clear()
    assert library_path(tmp_path) != first


def test_a_failing_compiler_is_one_clear_message(fake_compiler: Path, tmp_path: Path) -> None:
    fake_compiler.write_text("#!/bin/sh\necho 'pool.c:1: error: no such thing' >&2\nexit 1\n")
    with pytest.raises(NativeUnavailable, match=r"did not compile .* no such thing"):
        build(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.so"))


def test_a_processor_without_bf16_products_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    native_build.unavailable_reason.cache_clear()
    monkeypatch.setattr(native_build, "_processor_flags", lambda: {"avx2", "avx512f"})
    try:
        with pytest.raises(NativeUnavailable, match=r"the processor lacks .*avx512_bf16"):
            build_in_background(tmp_path)
    finally:
        native_build.unavailable_reason.cache_clear()


def test_amx_serves_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native_build, "_processor_flags", lambda: {"avx512_bf16", "amx_tile", "amx_bf16"})
    assert native_build.targets() == [Target.AMX, Target.AVX512]
    monkeypatch.setattr(native_build, "_processor_flags", lambda: {"avx512_bf16"})
    assert native_build.targets() == [Target.AVX512]
    assert library_path(tmp_path, Target.AMX) != library_path(tmp_path, Target.AVX512)


def test_a_background_build_ends_with_the_object(fake_compiler: Path, tmp_path: Path) -> None:
    compiling = build_in_background(tmp_path)
    assert compiling._process is not None
    compiling._process.wait(30)
    assert compiling.poll() == library_path(tmp_path)
    assert build_in_background(tmp_path).poll() == library_path(tmp_path)  # cached: at once


def test_closing_a_background_build_stops_it(fake_compiler: Path, tmp_path: Path) -> None:
    fake_compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nsleep 60\n')
    compiling = build_in_background(tmp_path)
    assert compiling.poll() is None
    compiling.close()
    assert compiling._process is not None and compiling._process.poll() is not None


def test_a_cache_that_cannot_be_written_is_one_clear_line(fake_compiler: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    with pytest.raises(NativeUnavailable, match=r"cannot be kept in .*XDG_CACHE_HOME"):
        build(occupied / "cache")
