"""What the HTTP server is told on the command line."""

from __future__ import annotations

import msgspec


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Names follow vLLM's flags."""

    host: str = "0.0.0.0"
    port: int = 8000
    uds: str | None = None  # listen on this unix socket instead of host and port
    served_model_names: tuple[str, ...] = ()  # empty: the model as given on the command line
    model: str = ""  # as given on the command line
    api_keys: tuple[str, ...] = ()  # any of them opens the API; empty: open to all
    tokenizer: str | None = None  # directory; None: the model's
    chat_template: str | None = None  # file or template text; None: the model's own
    generation_config: str = "auto"  # auto: sampling defaults of generation_config.json; vllm: neutral defaults
    auto_tool_choice: bool = True  # read tool calls out of answers to requests with tools
    tool_call_parser: str | None = None  # None: what the chat template shows, else the usual one
    usual_tool_call_parser: str = "hermes"  # of the model's architecture
    reasoning_parser: str | None = None  # None: reasoning stays in the text
    root_path: str = ""

    allowed_origins: tuple[str, ...] = ("*",)
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False

    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = 0  # ssl.CERT_NONE

    allowed_local_media_path: str | None = None  # file: URLs below this directory may be read
    allowed_media_domains: tuple[str, ...] = ()  # http(s): URLs of these hosts may be fetched
    max_images_per_prompt: int = 16  # --limit-mm-per-prompt
    max_media_bytes: int = 32 << 20
    media_timeout_s: float = 10.0

    max_body_bytes: int = 64 << 20
    enable_request_id_headers: bool = True
    access_log: bool = True
    log_level: str = "info"
    drain_timeout_s: float = 30.0  # after SIGTERM, open requests may take this long to finish

    @property
    def names(self) -> tuple[str, ...]:
        """Model names that requests may use; the first is the one that answers carry."""
        return self.served_model_names or (self.model,)
