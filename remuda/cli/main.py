"""The `remuda` command: one name per subcommand, imported only when it is used. Nothing here imports torch."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from remuda import __version__
from remuda.protocol.errors import RemudaError

# name -> (module, group, what it does). Each module has `run(argv) -> exit code`.
COMMANDS = {
    "serve": ("remuda.cli.serve", "Serving", "answer OpenAI-compatible HTTP requests"),
    "chat": ("remuda.cli.chat", "Asking", "talk to a server or a local model in the terminal"),
    "generate": ("remuda.cli.generate", "Asking", "complete prompts with a local model and exit"),
    "bench": ("remuda.cli.bench", "Measuring", "throughput, latency, or an online server under load"),
    "eval": ("remuda.cli.eval", "Measuring", "held-out accuracy by skill, of a server or a local model"),
    "make-tiny": ("remuda.cli.make_tiny", "Preparing", "write a tiny random checkpoint of a real architecture"),
    "native": ("remuda.cli.native", "Preparing", "build the native CPU kernels now"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; leaves through `sys.exit` with the command's status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = run(arguments)
    except RemudaError as error:
        print(f"remuda: {error.message}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output went away, as in `remuda --help | head -1`
        sys.stderr.close()
        status = 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"remuda: cannot write: {error.strerror}", file=sys.stderr)
        status = 1
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Dispatch to a subcommand and return its exit status."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(help_text(), flush=True)
        return 0
    if name in ("-V", "--version", "version"):
        print(f"remuda {__version__}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `remuda {near[0]}`?" if near else "see remuda --help"
        print(f"remuda: unknown command {name!r}; {hint}", file=sys.stderr)
        return 1
    status: int = import_module(COMMANDS[name][0]).run(arguments[1:])
    return status


def help_text() -> str:
    """All commands by group."""
    lines = [
        "usage: remuda COMMAND [arguments]",
        "",
        "Serves large language models over tensor- and pipeline-parallel ranks.",
    ]
    for group in dict.fromkeys(group for _, group, _ in COMMANDS.values()):
        lines += ["", f"{group}:"]
        lines += [f"  {name:<12} {about}" for name, (_, g, about) in COMMANDS.items() if g == group]
    lines += ["", "remuda COMMAND --help lists a command's flags; remuda --version tells the version."]
    return "\n".join(lines)
