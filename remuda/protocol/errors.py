"""Errors that cross a process or reach a user. Each says what to do; the HTTP status is decided here, once."""

from __future__ import annotations


class RemudaError(Exception):
    """Base of every error that a user or client may see: its text is a complete message, never a traceback."""

    http_status = 500
    kind = "internal_error"  # OpenAI's error "type"
    default_code: str | None = None  # what programs tell this error by, if nobody says it more precisely

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code


class ConfigError(RemudaError, ValueError):
    """The command line, the model's config or the checkpoint cannot be served as asked. `remuda` exits with 1."""

    http_status = 400
    kind = "invalid_request_error"


class CheckpointError(ConfigError):
    """A checkpoint file is missing, truncated or does not hold what the config promises."""


class InvalidRequest(RemudaError, ValueError):
    """A client's request is malformed or asks for something that this server does not do."""

    http_status = 400
    kind = "invalid_request_error"


class NotFound(RemudaError):
    http_status = 404
    kind = "not_found_error"


class Unauthorized(RemudaError):
    http_status = 401
    kind = "authentication_error"


class QueueFull(RemudaError):
    """The bounded waiting queue is full: come back soon."""

    http_status = 429
    kind = "rate_limit_error"
    default_code = "queue_full"
    retry_after_s = 1


class ReplicaDied(RemudaError):
    """A rank, a node or the engine of this replica is gone. `cause`: which of the three."""

    http_status = 503
    kind = "service_unavailable_error"
    default_code = "replica_died"

    def __init__(self, message: str, *, node: int = 0, rank: int | None = None, cause: str = "engine") -> None:
        super().__init__(message)
        self.node = node
        self.rank = rank
        self.cause = "rank" if rank is not None else cause


class Recovering(RemudaError):
    """The replica died and is being started again. What was admitted waits for it and is not lost."""

    http_status = 503
    kind = "service_unavailable_error"
    default_code = "recovering"


class CrashesReplica(RemudaError):
    """A request that was alone when a replica died, and had been there each of the times before."""

    default_code = "request_crashes_replica"


class PeerLost(RemudaError):
    """A rank's neighbour is gone or silent. Seldom the cause of a failure: mostly its echo, as supervision takes it."""

    default_code = "peer_lost"


class DeviceOutOfMemory(RemudaError):
    """A rank's GPU has no memory left for what it was to do."""

    default_code = "gpu_out_of_memory"


class DeviceFailed(RemudaError):
    """A rank's GPU is lost, or a kernel broke on it: nothing more can be computed there by this process."""

    default_code = "gpu_failed"


class ShuttingDown(RemudaError):
    http_status = 503
    kind = "service_unavailable_error"
