"""Every flag of the engine and the server as data: vLLM's names wherever the meaning is the same.

One table serves `remuda serve`, the offline commands, the YAML file, the Python API and the documentation. A flag that
vLLM has and Remuda does not is refused with its reason (`UNSUPPORTED`); one that nobody has, with its nearest match.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_LONGEST_S = 1e6


@dataclass(frozen=True)
class Flag:
    """One option. ``type`` bool makes a pair `--x` / `--no-x`; ``plural`` takes one or more values."""

    name: str  # as typed, without the dashes
    help: str
    type: Callable[[str], Any] | type = str
    default: Any = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    metavar: str | None = None
    plural: bool = False

    @property
    def key(self) -> str:
        """Its name in Python, in YAML and in the namespace."""
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class FlagGroup:
    title: str
    flags: tuple[Flag, ...]


def size_in_bytes(text: str) -> int:
    """'1073741824', '512M', '4G', '1.5GiB' -> bytes; powers of 1024."""
    number = text.strip().lower().removesuffix("ib").removesuffix("b")
    scale = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}.get(number[-1:], 1)
    try:
        size = int(float(number if scale == 1 else number[:-1]) * scale)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ArgumentTypeError(f"{text!r} is no size: write for example 1073741824, 512M or 4G")
    return size


def count(text: str) -> int:
    """A whole number of at least 1; '8k' is 8000 and '8K' is 8192, as in vLLM."""
    scale = {"k": 1000, "K": 1024, "m": 10**6, "M": 1 << 20}.get(text[-1:], 1)
    try:
        number = int(float(text[:-1]) * scale) if scale > 1 else int(text)
    except (ValueError, OverflowError):
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text == "0" else count(text)


def fraction(text: str) -> float:
    """A number in (0, 1]."""
    return _number(text, "a number above 0 and up to 1", lambda number: 0.0 < number <= 1.0)


def share(text: str) -> float:
    """A number in [0, 1]."""
    return _number(text, "a number from 0 to 1", lambda number: 0.0 <= number <= 1.0)


def positive(text: str) -> float:
    """A number above 0, possibly inf."""
    return _number(text, "a number above 0", lambda number: number > 0.0)


def seconds(text: str) -> float:
    """A time limit: above 0, and at most what every clock and library takes."""
    what = f"a number of seconds above 0 and up to {_LONGEST_S:g}"
    return _number(text, what, lambda number: 0.0 < number <= _LONGEST_S)


def _number(text: str, what: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")  # fits nowhere
    if not fits(number):
        raise ArgumentTypeError(f"{text!r} is not {what}")
    return number


def port(text: str) -> int:
    """0 (any free port) to 65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} is no port: 0 (any free one) to 65535")
    return int(text)


def model_len(text: str) -> int | None:
    """A count, or 'auto' for what the cache holds."""
    return None if text == "auto" else count(text)


ENGINE_FLAGS = (
    FlagGroup(
        "model",
        (
            Flag("tokenizer", "directory of the tokenizer, if it is not the model's", metavar="DIR"),
            Flag("dtype", "type to compute in; auto: the checkpoint's", default="auto",
                 choices=("auto", "bfloat16", "float32", "float", "half", "float16")),
            Flag("quantization", "fp8: made of the checkpoint's weights while they are read; default: what config.json "
                 "says", choices=("fp8", "compressed-tensors")),
            Flag("max-model-len", "longest prompt + answer; auto: the model's, or what the cache holds",
                 model_len, metavar="TOKENS"),
            Flag("revision", "branch, tag or commit of the repository on the Hugging Face Hub; default: main",
                 metavar="REVISION"),
            Flag("download-dir", "cache that repositories are downloaded to; default: HF_HUB_CACHE, or hub/ in HF_HOME",
                 metavar="DIR"),
            Flag("hf-token", "token for private and gated repositories; default: HF_TOKEN, or what `hf auth login` "
                 "stored", metavar="TOKEN"),
            Flag("load-format", "how weights are stored; dummy: they are random, only config.json is read",
                 default="auto", choices=("auto", "safetensors", "dummy")),
        ),
    ),
    FlagGroup(
        "layout",
        (
            Flag("tensor-parallel-size", "ranks that share every layer", count, 1, aliases=("-tp",), metavar="N"),
            Flag("pipeline-parallel-size", "stages, each with its own layers", count, 1, aliases=("-pp",), metavar="N"),
            Flag("enable-expert-parallel", "deal experts out whole, not each cut across TP ranks", bool, False,
                 aliases=("-ep",)),
            Flag("pipeline-layer-partition", "layers per stage, e.g. 25,23; default: computed from each layer's cost",
                 metavar="A,B,..."),
            Flag("distributed-executor-backend", "mp: a process per rank; inproc: within the engine (one rank only)",
                 default="mp", choices=("mp", "inproc", "uni", "ray", "external_launcher")),
            Flag("nnodes", "machines that run this command together", count, 1, metavar="N"),
            Flag("node-rank", "which of them this is; node 0 answers HTTP", int, 0, metavar="R"),
            Flag("master-addr", "address of node 0 that the others reach", default="127.0.0.1", metavar="HOST"),
            Flag("master-port", "first of the ports on node 0 for the rendezvous", port, 29551, metavar="PORT"),
            Flag("distributed-timeout-seconds", "limit of the rendezvous and of one collective", seconds, 60.0,
                 metavar="S"),
            Flag("startup-timeout", "limit of the whole start-up", seconds, 600.0, metavar="S"),
        ),
    ),
    FlagGroup(
        "KV cache",
        (
            Flag("block-size", "tokens per KV page", count, 16, metavar="TOKENS"),
            Flag("kv-cache-memory-bytes", "KV cache per rank; overrides the utilization (e.g. 2G)", size_in_bytes,
                 metavar="SIZE"),
            Flag("gpu-memory-utilization", "share of the device's memory for weights and cache; on CPU: of free memory",
                 fraction, 0.9, aliases=("--cpu-memory-utilization",), metavar="SHARE"),
            Flag("num-gpu-blocks-override", "KV pages per rank, exactly", count, metavar="PAGES"),
            Flag("enable-prefix-caching", "reuse the KV of equal prompt beginnings", bool, True),
            Flag("kv-cache-dtype", "type of the cache; auto: the compute type; fp8 (e4m3, without scales): twice the "
                 "tokens, on GPUs", default="auto", choices=("auto", "fp8", "fp8_e4m3")),
        ),
    ),
    FlagGroup(
        "scheduling",
        (
            Flag("max-num-seqs", "most requests running at once", count, 256, metavar="N"),
            Flag("max-num-batched-tokens", "most tokens in one step; longer prompts are cut into chunks. Default: 8192 "
                 "on GPUs, 2048 on CPU", count, metavar="TOKENS"),
            Flag("long-prefill-token-threshold", "most tokens of one prompt in a step; 0: no limit of its own", int, 0,
                 metavar="TOKENS"),
            Flag("enable-chunked-prefill", "always on", bool, True),
            Flag("scheduling-policy", "fcfs, or priority (lower values first)", default="fcfs",
                 choices=("fcfs", "priority")),
            Flag("max-waiting", "requests that may wait; beyond it a client gets 429", count, 1024, metavar="N"),
            Flag("async-scheduling", "schedule a step before the tokens of the one before it are known", bool, True),
            Flag("steps-in-flight", "steps sent ahead of their results; 0: stages + 1", int, 0, metavar="N"),
        ),
    ),
    FlagGroup(
        "device",
        (
            Flag("device", "where the ranks compute", default="auto", choices=("auto", "cuda", "cpu")),
            Flag("enforce-eager", "on GPUs: run decode steps kernel by kernel, not from CUDA graphs", bool, False),
            Flag("trace-dir", "on GPUs: each rank writes here, when it stops, when its device worked on which step",
                 metavar="DIR"),
            Flag("threads-per-rank", "threads of a rank; 0: this node's cores / its ranks", int, 0, metavar="N"),
            Flag("native-kernels", "of a CPU; auto: built in the background, adopted when ready; require: waited for",
                 default="auto", choices=("auto", "off", "require")),
        ),
    ),
)  # fmt: skip

OFFLINE_FLAGS = (
    *ENGINE_FLAGS,
    FlagGroup(
        "offline",
        (
            Flag("seed", "prompt i without a seed of its own gets this + i", int, 0),
            Flag("skip-tokenizer-init", "token ids in, token ids out: no tokenizer is read", bool, False),
        ),
    ),
)
"""Of the Python API and the commands that run a model themselves."""

SERVER_FLAGS = (
    FlagGroup(
        "HTTP",
        (
            Flag("host", "address to listen on", default="0.0.0.0", metavar="ADDR"),
            Flag("port", "port to listen on; 0: any free one", port, 8000, metavar="PORT"),
            Flag("uds", "listen on this unix socket instead", metavar="PATH"),
            Flag("served-model-name", "names that clients may use; default: the model's", plural=True, metavar="NAME"),
            Flag("api-key", "keys that clients must send one of", plural=True, metavar="KEY"),
            Flag("root-path", "path prefix put in front by a proxy", default="", metavar="PATH"),
            Flag("allowed-origins", "CORS origins", plural=True, default=("*",), metavar="ORIGIN"),
            Flag("allowed-methods", "CORS methods", plural=True, default=("*",), metavar="METHOD"),
            Flag("allowed-headers", "CORS headers", plural=True, default=("*",), metavar="HEADER"),
            Flag("allow-credentials", "CORS credentials", bool, False),
            Flag("ssl-keyfile", "TLS key", metavar="FILE"),
            Flag("ssl-certfile", "TLS certificate", metavar="FILE"),
            Flag("ssl-ca-certs", "CA certificates that clients' certificates are checked against", metavar="FILE"),
            Flag("ssl-cert-reqs", "0: none, 1: optional, 2: clients must have a certificate", int, 0, metavar="N"),
            Flag("enable-request-id-headers", "send X-Request-Id back", bool, True),
            Flag("disable-uvicorn-access-log", "no line per request", bool, False),
            Flag("uvicorn-log-level", "log level of the HTTP server", default="info",
                 choices=("critical", "error", "warning", "info", "debug", "trace")),
            Flag("shutdown-timeout", "how long open requests may run on after SIGTERM", seconds, 30.0, metavar="S"),
            Flag("config", "YAML file of these flags; the command line overrides it", metavar="FILE"),
        ),
    ),
    FlagGroup(
        "chat and images",
        (
            Flag("chat-template", "Jinja file, or the template itself; default: the tokenizer's", metavar="FILE"),
            Flag("enable-auto-tool-choice", "read tool calls out of answers to requests with tools", bool, True),
            Flag("tool-call-parser", "form in which the model writes calls; default: by its chat template, else by its "
                 "architecture", choices=("llama4_pythonic", "llama4_json", "llama3_json", "pythonic", "hermes",
                                          "mistral")),
            Flag("reasoning-parser", "form of the reasoning that is split off answers; default: none is",
                 choices=("qwen3", "deepseek_r1")),
            Flag("generation-config", "auto: the checkpoint's sampling defaults; vllm: OpenAI's", default="auto",
                 choices=("auto", "vllm")),
            Flag("allowed-local-media-path", "directory that image_url may read from", metavar="DIR"),
            Flag("allowed-media-domains", "hosts that image_url may fetch from", plural=True, metavar="HOST"),
            Flag("limit-mm-per-prompt", "most images of a prompt, as {\"image\": N}", metavar="JSON"),
        ),
    ),
)  # fmt: skip

UNSUPPORTED = {
    "trust-remote-code": "Remuda never runs code from a checkpoint",
    "compilation-config": "nothing is compiled by torch; see --native-kernels",
    "tokenizer-mode": "tokenizer.json is always used",
    "skip-tokenizer-init": "the server needs the tokenizer; the Python API takes token ids",
    "data-parallel-size": "one replica per command; put a load balancer in front of several",
    "prefill-context-parallel-size": "context parallelism is not implemented",
    "decode-context-parallel-size": "context parallelism is not implemented",
    "speculative-config": "speculative decoding is not implemented yet",
    "enable-lora": "adapters are not implemented",
    "lora-modules": "adapters are not implemented",
    "swap-space": "preempted requests are recomputed, not swapped out",
    "cpu-offload-gb": "weights are not offloaded; raise --tensor-parallel-size or --pipeline-parallel-size",
    "calculate-kv-scales": "a KV cache of float8 has a scale of 1, which loses little: see docs/gpu.md",
    "guided-decoding-backend": "structured output is not implemented yet",
    "structured-outputs-config": "structured output is not implemented yet",
    "max-logprobs": "the limit is fixed at 20",
    "task": "Remuda generates text; embedding and scoring are not implemented",
    "runner": "Remuda generates text; embedding and scoring are not implemented",
    "kv-transfer-config": "moving KV between replicas is not implemented",
    "disable-hybrid-kv-cache-manager": "the hybrid cache is the only one",
    "enable-sleep-mode": "sleep mode is not implemented",
    "seed": "a request without a seed gets a fresh one; send one to repeat an answer",
    "headless": "nodes other than 0 never answer HTTP: use --node-rank",
    "api-server-count": "one HTTP process serves",
    "middleware": "code is not loaded by name",
    "disable-log-stats": "statistics are at /metrics and are not logged",
    "disable-log-requests": "requests are not logged",
    "enable-log-requests": "requests are not logged",
    "max-num-partial-prefills": "as many prompts as fit into a step are prefilled together",
    "hf-overrides": "the checkpoint's config.json is used as it is",
    "model-impl": "Remuda's own models are the only ones",
}
"""vLLM's flags that Remuda refuses, and why."""
