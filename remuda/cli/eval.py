"""`remuda eval`: accuracy by skill on held-out problems, of a running server or a local model of any layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from remuda.cli.chat import connected, first_model
from remuda.config.arguments import ENGINE_FLAGS, Flag, FlagGroup, count
from remuda.config.parser import FlagParser
from remuda.hub.source import MODEL_HELP

EVAL = FlagGroup(
    "evaluation",
    (
        Flag("base-url", "a running server, e.g. http://127.0.0.1:8000; without it a local model is started",
             metavar="URL"),
        Flag("served-model", "model name to ask the server for; default: its first", metavar="NAME"),
        Flag("api-key", "bearer token", default="", metavar="KEY"),
        Flag("skills", "which skills; default: all", plural=True, metavar="SKILL"),
        Flag("problems", "JSON lines, gzip or not, of other problems than the embedded ones", metavar="FILE"),
        Flag("num-problems", "most problems per skill", count, 100),
        Flag("concurrency", "requests at a time", count, 8),
        Flag("details", "a line for every kind of problem", bool, False),
        Flag("json", "print JSON, with examples of wrong replies, instead of the table", bool, False),
        Flag("config", "YAML file of these flags", metavar="FILE"),
    ),
)  # fmt: skip


def run(argv: Sequence[str]) -> int:
    from remuda.evaluation.client import ServerAsk
    from remuda.evaluation.problem import EMBEDDED, read_problems
    from remuda.evaluation.run import run_eval

    parser = FlagParser("remuda eval", "Held-out accuracy by skill.", (EVAL, *ENGINE_FLAGS), operand="[MODEL]")
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    options = parser.read(argv)
    problems = read_problems(Path(options["problems"] or EMBEDDED))
    with connected(options, argv) as client:
        report = run_eval(
            ServerAsk(client, options["served_model"] or first_model(client)), problems, options["skills"] or (),
            count=options["num_problems"], concurrency=options["concurrency"],
        )  # fmt: skip
    print(json.dumps(report.as_json(), indent=2) if options["json"] else report.table(options["details"]))
    return 0
