"""A conversation with a running server, each answer printed as it comes (needs `pip install openai`).

remuda serve & python examples/streaming_client.py [BASE_URL]
"""

from __future__ import annotations

import sys

from openai import OpenAI

QUESTIONS = ("What is 47 x 36?", "Now add 8.")


def main(base_url: str = "http://localhost:8000") -> None:
    client = OpenAI(base_url=f"{base_url}/v1", api_key="none")
    model = client.models.list().data[0].id
    messages = []
    for question in QUESTIONS:
        print(f"> {question}")
        messages.append({"role": "user", "content": question})
        answer = ""
        for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, temperature=0):
            piece = chunk.choices[0].delta.content or ""
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main(*sys.argv[1:])
