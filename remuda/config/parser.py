"""Command lines, YAML files and keyword arguments, read against the flag tables; nothing unknown gets through."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from remuda.config.arguments import UNSUPPORTED, Flag, FlagGroup
from remuda.protocol.errors import ConfigError


class FlagParser(argparse.ArgumentParser):
    """argparse with groups of flags from tables, `--config`, underscores as in `--max_model_len`, helpful refusals."""

    def __init__(self, prog: str, description: str, groups: Iterable[FlagGroup] = (), *, operand: str = "") -> None:
        super().__init__(
            prog=prog, description=description, usage=" ".join(filter(None, (prog, operand, "[flags]"))),
            allow_abbrev=False, formatter_class=_formatter, add_help=False,
        )  # fmt: skip
        self.flags: dict[str, Flag] = {}
        self.add_argument("-h", "--help", action="help", help="show this help")
        for group in groups:
            self.add_group(group)

    def add_group(self, group: FlagGroup) -> None:
        target = self.add_argument_group(group.title)
        for flag in group.flags:
            self.flags[flag.name] = flag
            _add_flag(target, flag)

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """Parse; a `--config FILE` comes first, so that the command line overrides it.

        Raises:
            ConfigError: an unknown or unsupported flag, or a value that does not fit.
        """
        tokens = [_with_dashes(token) for token in argv]
        config, tokens = _take_config(tokens) if "config" in self.flags else (None, tokens)
        model: str | None = None
        if config is not None:
            from_file, model = self._tokens_of_file(config)
            tokens = from_file + tokens
        namespace, unknown = self.parse_known_args(tokens)
        for token in unknown:
            if token.startswith("-"):
                raise ConfigError(self.refusal(token.split("=")[0]))
        if unknown:
            raise ConfigError(f"unexpected argument {unknown[0]!r}; see {self.prog} --help")
        options = vars(namespace)
        if "model" in options and options["model"] is None and model is None:
            self._check_swallowed(tokens)
        if model is not None and options.get("model") is None:
            options["model"] = model
        return options

    def _check_swallowed(self, tokens: list[str]) -> None:
        """`serve --api-key KEY CHECKPOINT` would serve the default model, with the checkpoint's path as a key."""
        last = next((t for t in reversed(tokens) if t.startswith("--")), "").removeprefix("--")
        flag = self.flags.get(last)  # with "=" in it, it takes nothing from what follows
        if (
            flag is not None
            and flag.plural
            and len(tokens) - tokens.index(f"--{last}") > 2
            and Path(tokens[-1]).is_dir()
        ):
            raise ConfigError(f"{tokens[-1]} was read as a value of --{last}: put the model before --{last}")

    def refusal(self, flag: str) -> str:
        """Why `flag` (with its dashes) is not accepted, and what is."""
        name = flag.lstrip("-")
        if reason := UNSUPPORTED.get(name) or UNSUPPORTED.get(name.removeprefix("no-")):
            return f"{flag} is not supported: {reason}"
        known = [option for action in self._actions for option in action.option_strings]
        near = get_close_matches(flag, known, n=1, cutoff=0.6)
        return f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def _tokens_of_file(self, path: Path) -> tuple[list[str], str | None]:
        """The file as command-line tokens, and its `model`. Keys are flag names, with dashes or underscores."""
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--config {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {path} is no YAML: {str(error).splitlines()[0]}") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"--config {path} must be a mapping of flag names to values")
        tokens: list[str] = []
        model = None
        for key, value in loaded.items():
            name = str(key).replace("_", "-").removeprefix("--")
            if name == "model":
                model = str(value)
            elif name == "config":
                raise ConfigError(f"{path}: one file cannot name another with config")
            elif name not in self.flags:
                raise ConfigError(f"{path}: {self.refusal('--' + name)}")
            else:
                tokens += _tokens_of_value(self.flags[name], value, path)
        return tokens, model


def options_from_keywords(groups: Iterable[FlagGroup], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the groups overridden by Python keywords; converted and checked as on the command line."""
    parser = FlagParser("LLM", "", groups)
    options = {flag.key: flag.default for flag in parser.flags.values()}
    for key, value in keywords.items():
        flag = parser.flags.get(key.replace("_", "-"))
        if flag is None or flag.key != key:
            raise ConfigError(parser.refusal("--" + key.replace("_", "-")).replace("--", "").replace("-", "_"))
        options[key] = _keyword_value(flag, value)
    return options


def _keyword_value(flag: Flag, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (list, tuple)):
        return list(value) if flag.plural else ",".join(map(str, value))
    try:
        converted = flag.type(str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ConfigError(f"{flag.key}: {error}") from error
    if flag.choices and converted not in flag.choices:
        raise ConfigError(f"{flag.key} must be one of {', '.join(flag.choices)}, not {value!r}")
    return converted


def _add_flag(target: Any, flag: Flag) -> None:
    names = ["--" + flag.name, *flag.aliases]
    if flag.type is bool:
        negative = f"--no-{flag.name}"
        note = f" (on; {negative} turns it off)" if flag.default else ""
        target.add_argument(*names, dest=flag.key, action="store_true", default=flag.default, help=flag.help + note)
        target.add_argument(negative, dest=flag.key, action="store_false", help=argparse.SUPPRESS)
        return
    shown = "" if flag.default in (None, "") or flag.plural else f" (default: {flag.default})"
    target.add_argument(
        *names, dest=flag.key, type=flag.type, default=flag.default, choices=flag.choices or None,
        help=(flag.help + shown).replace("%", "%%"), metavar=None if flag.choices else flag.metavar,
        nargs="+" if flag.plural else None,
    )  # fmt: skip


def _with_dashes(token: str) -> str:
    """--max_model_len=8 -> --max-model-len=8, as vLLM accepts it."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value


def _take_config(tokens: list[str]) -> tuple[Path | None, list[str]]:
    """Cut `--config FILE` or `--config=FILE` out of the tokens."""
    for i, token in enumerate(tokens):
        if token == "--config":
            if i + 1 == len(tokens):
                raise ConfigError("--config needs a file")
            return Path(tokens[i + 1]), tokens[:i] + tokens[i + 2 :]
        if token.startswith("--config="):
            return Path(token.split("=", 1)[1]), tokens[:i] + tokens[i + 1 :]
    return None, tokens


def _tokens_of_value(flag: Flag, value: Any, path: Path) -> list[str]:
    if flag.type is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {flag.name} must be true or false, not {value!r}")
        return [f"--{flag.name}" if value else f"--no-{flag.name}"]
    if isinstance(value, list):
        if not flag.plural:
            value = ",".join(map(str, value))
        else:
            return [f"--{flag.name}", *map(str, value)]
    if isinstance(value, (dict, bool)) or value is None:
        raise ConfigError(f"{path}: {flag.name} cannot be {value!r}")
    return [f"--{flag.name}={value}"]


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=34, width=118)
