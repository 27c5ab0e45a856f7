"""Options -> ServerConfig."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remuda.hub.source import DEMO_MODEL
from remuda.models.registry import ARCHITECTURES
from remuda.protocol.errors import ConfigError
from remuda.server.config import ServerConfig


def server_config(options: Mapping[str, Any], architecture: str) -> ServerConfig:
    """For a model of this architecture. Raises ConfigError for values that cannot work."""
    return ServerConfig(
        host=options["host"], port=options["port"], uds=options["uds"], root_path=options["root_path"],
        model=options["model"] or DEMO_MODEL, served_model_names=tuple(options["served_model_name"] or ()),
        api_keys=tuple(options["api_key"] or ()), enable_request_id_headers=options["enable_request_id_headers"],
        allowed_origins=tuple(options["allowed_origins"]), allowed_methods=tuple(options["allowed_methods"]),
        allowed_headers=tuple(options["allowed_headers"]), allow_credentials=options["allow_credentials"],
        ssl_keyfile=options["ssl_keyfile"], ssl_certfile=options["ssl_certfile"], ssl_ca_certs=options["ssl_ca_certs"],
        ssl_cert_reqs=options["ssl_cert_reqs"],
        tokenizer=options["tokenizer"], chat_template=options["chat_template"],
        generation_config=options["generation_config"],
        auto_tool_choice=options["enable_auto_tool_choice"], tool_call_parser=options["tool_call_parser"],
        usual_tool_call_parser=ARCHITECTURES[architecture].tool_call_parser,
        reasoning_parser=options["reasoning_parser"],
        allowed_local_media_path=_directory(options["allowed_local_media_path"]),
        allowed_media_domains=tuple(options["allowed_media_domains"] or ()),
        max_images_per_prompt=_image_limit(options["limit_mm_per_prompt"]),
        access_log=not options["disable_uvicorn_access_log"], log_level=options["uvicorn_log_level"],
        drain_timeout_s=options["shutdown_timeout"],
    )  # fmt: skip


def _directory(path: str | None) -> str | None:
    if path is not None and not Path(path).is_dir():
        raise ConfigError(f"--allowed-local-media-path {path} is no directory")
    return path


def _image_limit(text: str | None) -> int:
    """--limit-mm-per-prompt '{"image": 4}' (or image=4) -> 4."""
    if text is None:
        return ServerConfig().max_images_per_prompt
    try:
        limits = json.loads(text) if text.startswith("{") else dict([text.split("=")])
        images = int(limits.pop("image"))
    except (ValueError, KeyError, TypeError, AttributeError):
        images, limits = -1, {}
    if images < 0 or limits:
        raise ConfigError('--limit-mm-per-prompt takes the number of images, as {"image": 4}; there is no other kind')
    return images
