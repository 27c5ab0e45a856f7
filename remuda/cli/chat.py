"""`remuda chat`: a conversation in the terminal, against a running server or a local model served for the occasion."""

from __future__ import annotations

import base64
import contextlib
import json
import mimetypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from remuda.config.arguments import ENGINE_FLAGS, Flag, FlagGroup, count
from remuda.config.parser import FlagParser
from remuda.hub.source import MODEL_HELP
from remuda.protocol.errors import ConfigError, RemudaError

HELP = """\
/image FILE   attach an image to the next message      /reset   forget the conversation
/system TEXT  set the system message, and reset        /exit    leave (also Ctrl-D)
Ctrl-C stops an answer."""

CHAT = FlagGroup(
    "chat",
    (
        Flag("base-url", "a running server, e.g. http://127.0.0.1:8000; without it a local model is started",
             metavar="URL"),
        Flag("served-model", "model name to ask the server for; default: its first", metavar="NAME"),
        Flag("api-key", "bearer token", default="", metavar="KEY"),
        Flag("system", "system message", default="", metavar="TEXT"),
        Flag("max-tokens", "most tokens of an answer", count, 1024, metavar="TOKENS"),
        Flag("temperature", "0: greedy; default: the model's", float),
        Flag("tools", "functions that the model may call, a JSON list in OpenAI's form; you type what they return",
             metavar="FILE"),
        Flag("image", "images attached to the first message", plural=True, metavar="FILE"),
        Flag("config", "YAML file of these flags", metavar="FILE"),
    ),
)  # fmt: skip


def run(argv: Sequence[str]) -> int:
    parser = FlagParser("remuda chat", "Talk to a model in the terminal.", (CHAT, *ENGINE_FLAGS), operand="[MODEL]")
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    options = parser.read(argv)
    with connected(options, argv) as client:
        Conversation(client, options).loop()
    return 0


@contextlib.contextmanager
def connected(options: dict[str, Any], argv: Sequence[str]) -> Iterator[httpx.Client]:
    """A client of the server at --base-url, or of one that is started for the local model and ended afterwards."""
    if options["base_url"] and options["model"]:
        raise ConfigError("give a model or --base-url, not both")
    headers = {"Authorization": f"Bearer {options['api_key']}"} if options["api_key"] else {}
    with contextlib.ExitStack() as stack:
        url = options["base_url"] or stack.enter_context(local_server(options, argv))
        yield stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(600, connect=10)))


@contextlib.contextmanager
def local_server(options: dict[str, Any], argv: Sequence[str]) -> Iterator[str]:
    """A server of the local model on a free port of this machine, ended afterwards."""
    from remuda.cli.local import serving

    engine_flags = [flag for group in ENGINE_FLAGS for flag in group.flags]
    arguments = [options["model"]] if options["model"] else []
    for flag in engine_flags:
        value = options[flag.key]
        if value != flag.default:
            arguments += [f"--{'' if value is not False else 'no-'}{flag.name}"] + (
                [] if flag.type is bool else [str(value)]
            )
    with serving(arguments) as url:
        yield url


class Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(self, client: httpx.Client, options: dict[str, Any]) -> None:
        self.client = client
        self.options = options
        self.model = options["served_model"] or first_model(client)
        self.system = options["system"]
        self.images: list[str] = [data_url(Path(path)) for path in options["image"] or ()]
        self.tools = read_tools(Path(options["tools"])) if options["tools"] else []
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def loop(self) -> None:
        interactive = sys.stdin.isatty()
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (line editing and history for input())
            print(f"Talking to {self.model}. /help lists the commands.")
        while (line := self._read(interactive)) is not None:
            if line.startswith("/"):
                if not self.command(line):
                    return
            elif line.strip():
                self.say(line)

    def command(self, line: str) -> bool:
        """Obey a /command; False to leave."""
        name, _, argument = line.partition(" ")
        match name:
            case "/exit" | "/quit":
                return False
            case "/reset":
                self.reset()
                self.images.clear()
            case "/system":
                self.system = argument.strip()
                self.reset()
            case "/image":
                try:
                    self.images.append(data_url(Path(argument.strip()).expanduser()))
                except ConfigError as error:
                    print(error)
            case _:
                print(HELP)
        return True

    def say(self, text: str) -> None:
        """Send a user message and print the answer as it comes."""
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in self.images]
        content: Any = [*parts, {"type": "text", "text": text}] if parts else text
        begun = len(self.messages)
        self.messages.append({"role": "user", "content": content})
        try:
            while self.answer():
                pass
        except (httpx.HTTPError, RemudaError) as error:
            print(f"remuda: {error}", file=sys.stderr)
            del self.messages[begun:]

    def answer(self) -> bool:
        """Print the next answer as it comes. True if it called functions, whose results have then been read."""
        answer = Answer()
        try:
            for delta in self.stream():
                print(answer.add(delta), end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
            answer.calls.clear()  # perhaps half of one
        self.images.clear()
        self.messages.append(answer.message())
        print()
        for call in answer.calls:
            result = self._read(sys.stdin.isatty(), f"{call['function']['name']} returns: ")
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result or ""})
            if result is None:  # the end of the input
                return False
        return bool(answer.calls)

    def stream(self) -> Iterator[dict[str, Any]]:
        """What each chunk adds to the answer to the conversation so far."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": self.messages,
            "stream": True,
            "max_completion_tokens": self.options["max_tokens"],
        }
        if self.tools:
            body["tools"] = self.tools
        if self.options["temperature"] is not None:
            body["temperature"] = self.options["temperature"]
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise RemudaError(error_text(response.read()))
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RemudaError(error_text(line[6:].encode()))
                for choice in event.get("choices", ()):
                    yield choice["delta"]

    def _read(self, interactive: bool, prompt: str = "> ") -> str | None:
        try:
            return input(prompt if interactive else "")
        except EOFError:
            return None


class Answer:
    """A message put together from a stream's deltas, and what of it is printed."""

    def __init__(self) -> None:
        self._content = ""
        self.calls: list[dict[str, Any]] = []

    def add(self, delta: dict[str, Any]) -> str:
        """What to print for it. Reasoning is shown and not kept, as templates leave it out of later turns."""
        content = delta.get("content") or ""
        self._content += content
        shown = (delta.get("reasoning_content") or "") + content
        for part in delta.get("tool_calls") or ():
            function = part["function"]
            if part["index"] == len(self.calls):
                self.calls.append(part | {"function": {"name": function["name"], "arguments": ""}})
                shown += f"{function['name']} "
            self.calls[part["index"]]["function"]["arguments"] += function["arguments"]
            shown += function["arguments"]
        return shown

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._content}
        return message | {"tool_calls": self.calls} if self.calls else message


def first_model(client: httpx.Client) -> str:
    """The name by which a server's model is asked. Raises ConfigError if no server answers."""
    try:
        return str(client.get("/v1/models").raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"no server answers at {client.base_url}: {error}") from error


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The functions in a file. The server checks what is in the list."""
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tools {path} cannot be read: {error}") from error
    if not isinstance(tools, list):
        raise ConfigError(f"--tools {path} must hold a JSON list of functions, as a chat request's `tools`")
    return tools


def data_url(path: Path) -> str:
    """An image file as a data: URL."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise ConfigError(f"{path} does not look like an image file")
    try:
        return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def error_text(body: bytes) -> str:
    """The message of an OpenAI-shaped error."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:300].decode(errors="replace")
