"""Let a running server choose functions of this program, and call them (needs `pip install openai`).

remuda serve & python examples/tools.py [BASE_URL]
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import OpenAI


def set_timer(minutes: int) -> str:
    return f"a timer of {minutes} minutes is set"


def play_song(title: str) -> str:
    return f"now playing: {title}"


FUNCTIONS = {"set_timer": set_timer, "play_song": play_song}


def tool(name: str, about: str, **parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": kind} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


TOOLS = [tool("set_timer", "Set a timer", minutes="integer"), tool("play_song", "Play a song", title="string")]


def main(base_url: str = "http://localhost:8000") -> None:
    client = OpenAI(base_url=f"{base_url}/v1", api_key="none")
    model = client.models.list().data[0].id
    for wish in ("Set a timer for 25 minutes.", 'Play the song "silver river".'):
        messages = [{"role": "user", "content": wish}]
        reply = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0)
        print(f"> {wish}")
        for call in reply.choices[0].message.tool_calls or ():
            print(FUNCTIONS[call.function.name](**json.loads(call.function.arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
