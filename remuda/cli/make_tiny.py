"""`remuda make-tiny`: a tiny random checkpoint of a real architecture, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remuda.config.arguments import Flag, FlagGroup
from remuda.config.parser import FlagParser
from remuda.models.registry import TINY_KINDS
from remuda.protocol.errors import ConfigError

FLAGS = FlagGroup(
    "checkpoint",
    (
        Flag("kind", "what to imitate", default="maverick",
             choices=tuple(TINY_KINDS)),
        Flag("dtype", "how the weights are stored", default="bfloat16", choices=("bfloat16", "float32")),
        Flag("seed", "seed of the weights", int, 0),
        Flag("list", "say what each kind imitates, and write nothing", bool, False),
    ),
)  # fmt: skip


def run(argv: Sequence[str]) -> int:
    parser = FlagParser(
        "remuda make-tiny", "Write a tiny random checkpoint in Hugging Face's layout.", (FLAGS,), operand="DIRECTORY"
    )
    parser.add_argument("directory", nargs="?", help="where to; must not exist yet, or be empty")
    options = parser.read(argv)
    if options["list"]:
        print("\n".join(f"{name:<16}{kind.about}" for name, kind in TINY_KINDS.items()))
        return 0
    if options["directory"] is None:
        raise ConfigError("say which directory to write to; `remuda make-tiny --list` shows what can be made")
    from remuda.tiny import make_tiny

    directory = Path(options["directory"])
    try:
        if directory.exists() and any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty")
        make_tiny(options["kind"], directory, seed=options["seed"], dtype=options["dtype"])
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}") from error
    print(f"wrote {options['kind']} to {directory}")
    return 0
