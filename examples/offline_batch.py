"""Complete a batch of prompts in this process, each with its own sampling.

python examples/offline_batch.py [MODEL]
"""

from __future__ import annotations

import sys

from remuda import LLM, SamplingParams

QUESTIONS = ("What is 12 + 30?", "Sort these words: pear, apple, cherry", "Spell the word lantern.")


def main(model: str | None = None) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=64)
    varied = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=64, n=2, seed=7)
    with LLM(model, max_model_len=2048) as llm:
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        for result in llm.chat(chats, [greedy, greedy, varied], use_tqdm=False):
            for answer in result.outputs:
                print(f"{len(result.prompt_token_ids)} tokens -> {answer.text!r} ({answer.finish_reason})")
        print(f"{llm.stats().running} requests are left")


if __name__ == "__main__":
    main(*sys.argv[1:])
