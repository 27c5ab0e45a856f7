"""`remuda generate`: complete prompts with a local model, print the texts, exit."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from remuda.config.arguments import OFFLINE_FLAGS, Flag, FlagGroup, count
from remuda.config.parser import FlagParser
from remuda.hub.source import MODEL_HELP
from remuda.protocol.errors import ConfigError

SAMPLING = FlagGroup(
    "sampling",
    (
        Flag("max-tokens", "most tokens of an answer", count, 64, metavar="TOKENS"),
        Flag("temperature", "0: greedy", float, 0.0),
        Flag("top-p", "keep the likeliest tokens up to this share", float, 1.0),
        Flag("top-k", "keep this many of the likeliest tokens; 0: all", int, 0),
        Flag("n", "answers per prompt", count, 1),
        Flag("stop", "texts that end an answer", plural=True, metavar="TEXT"),
        Flag("ignore-eos", "go on after an end-of-sequence token", bool, False),
    ),
)
GENERATE = FlagGroup(
    "prompts",
    (
        Flag("prompt", "texts to complete; default: one per line of standard input", plural=True, metavar="TEXT"),
        Flag("chat", "treat each prompt as a user's chat message", bool, False),
        Flag("chat-template", "Jinja file, or the template itself", metavar="FILE"),
        Flag("json", "print one JSON object per prompt", bool, False),
        Flag("config", "YAML file of these flags", metavar="FILE"),
    ),
)


def run(argv: Sequence[str]) -> int:
    parser = FlagParser(
        "remuda generate",
        "Complete prompts with a local model.",
        (GENERATE, SAMPLING, *OFFLINE_FLAGS),
        operand="[MODEL]",
    )
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    options = parser.read(argv)
    prompts = options["prompt"] or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise ConfigError("no prompt: give --prompt, or lines on standard input")
    for prompt, result in zip(prompts, answer(options, prompts), strict=True):
        texts = [completion.text for completion in result.outputs]
        if options["json"]:
            print(json.dumps({"prompt": prompt, "texts": texts, "token_ids": [c.token_ids for c in result.outputs]}))
        else:
            print(*texts, sep="\n")
    return 0


def answer(options: dict[str, Any], prompts: list[str]) -> list[Any]:
    """Results of every prompt, in order."""
    from remuda.llm import LLM
    from remuda.protocol.sampling import SamplingParams

    engine = {flag.key: options[flag.key] for group in OFFLINE_FLAGS for flag in group.flags}
    params = SamplingParams(
        max_tokens=options["max_tokens"], temperature=options["temperature"], top_p=options["top_p"],
        top_k=options["top_k"], n=options["n"], stop=options["stop"] or [], ignore_eos=options["ignore_eos"],
    )  # fmt: skip
    with LLM(options["model"], chat_template=options["chat_template"], **engine) as llm:
        if options["chat"]:
            return list(llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], params))
        return list(llm.generate(prompts, params))
