"""Everything beside generation: models, tokenize, detokenize, health, version, load, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec

import remuda
from remuda.metrics.prometheus import CONTENT_TYPE, Exporter
from remuda.protocol.errors import InvalidRequest, NotFound, ReplicaDied, ShuttingDown
from remuda.server.http import Exchange
from remuda.server.messages import chat_prompt
from remuda.server.protocol import DetokenizeRequest, TokenizeRequest
from remuda.server.service import Service
from remuda.server.stream import to_json

_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)
_STATS_TIMEOUT_S = 1.0
_started = int(time.time())


async def health(service: Service, exchange: Exchange) -> None:
    """200 once the engine has passed its self-test, as long as it lives and new requests are taken. With code
    `recovering`: it died and is being started again."""
    service.engine.check_serving()
    if service.draining:
        raise ShuttingDown("the server is shutting down")
    await exchange.respond(b"")


async def version(service: Service, exchange: Exchange) -> None:
    await exchange.respond(to_json({"version": remuda.__version__}))


async def load(service: Service, exchange: Exchange) -> None:
    """How many sequences are open: what a load balancer compares."""
    await exchange.respond(to_json({"server_load": service.engine.open_sequences}))


async def metrics(service: Service, exchange: Exchange) -> None:
    if service.engine.unavailable is None:
        # In a long step, or when the engine dies meanwhile, the numbers of the last time must do.
        with contextlib.suppress(TimeoutError, ReplicaDied):
            await asyncio.wait_for(service.engine.stats(), _STATS_TIMEOUT_S)
    text = Exporter(service.engine.metrics, service.config.names[0]).render()
    await exchange.respond(text, headers=[(b"content-type", CONTENT_TYPE.encode())])


async def models(service: Service, exchange: Exchange) -> None:
    cards = [_model_card(service, name) for name in service.config.names]
    await exchange.respond(to_json({"object": "list", "data": cards}))


async def one_model(service: Service, exchange: Exchange) -> None:
    name = exchange.path.removeprefix("/v1/models/")
    if name not in service.config.names:
        raise NotFound(f"the model {name!r} does not exist", param="model", code="model_not_found")
    await exchange.respond(to_json(_model_card(service, name)))


async def tokenize(service: Service, exchange: Exchange) -> None:
    request = await exchange.json(_tokenize_decoder, service.config.max_body_bytes)
    service.check_model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    if request.prompt is not None:
        (tokens,) = await service.encode([request.prompt], add_special_tokens=request.add_special_tokens is not False)
    else:
        tokens = (await chat_prompt(service, request)).token_ids
    names = [service.tokenizer.token_text(token) for token in tokens] if request.return_token_strs else None
    answer = {"count": len(tokens), "max_model_len": service.max_model_len, "tokens": tokens, "token_strs": names}
    await exchange.respond(to_json(answer))


async def detokenize(service: Service, exchange: Exchange) -> None:
    request = await exchange.json(_detokenize_decoder, service.config.max_body_bytes)
    service.check_model(request.model)
    if any(not 0 <= token < service.model.vocab_size for token in request.tokens):
        raise InvalidRequest(f"tokens must be between 0 and {service.model.vocab_size - 1}", param="tokens")
    await exchange.respond(to_json({"prompt": service.tokenizer.decode(request.tokens)}))


def _model_card(service: Service, name: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": _started,
        "owned_by": "remuda",
        "root": service.config.model,
        "parent": None,
        "max_model_len": service.max_model_len,
    }
