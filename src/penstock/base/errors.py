"""The error tree, split by whose fault it is.

    PenstockError
    ├── ClientError              the caller sent something we cannot honour          4xx
    │   ├── InvalidRequestError      malformed JSON, wrong type, value out of range  400
    │   ├── UnsupportedParameterError  a field we know but have not built            400
    │   ├── UnknownParameterError    a field nobody knows                            400
    │   ├── ContextLengthError       prompt longer than the model's context          400
    │   ├── ModelNotFoundError       no such model                                   404
    │   ├── RequestNotFoundError     no such request runs here                       404
    │   ├── RouteNotFoundError       no such path                                    404
    │   ├── MethodNotAllowedError    path exists, method does not                    405
    │   ├── RequestTimeoutError      the body did not arrive in time                 408
    │   ├── MovedError               it goes on in another engine                    409
    │   ├── BodyTooLargeError        body over the configured limit                  413
    │   └── ClientGoneError          the client left before its answer               499
    ├── CapacityError            we are whole but cannot do this now                429, 503, 504
    │   ├── QueueFullError           bounded queue is full                           429
    │   ├── DeadlineExceededError    the request's own time limit passed             504
    │   ├── DrainingError            shutting down                                   503
    │   ├── NotReadyError            no replica of the model is ready                503
    │   └── ModelLoadError           the model could not be loaded                   503
    ├── UpstreamError            a replica failed us                                 502, 504
    │   ├── UpstreamConnectError     could not connect or send                       502
    │   ├── UpstreamProtocolError    answer broken, cut or not HTTP                  502
    │   └── UpstreamTimeoutError     no byte in time                                 504
    ├── EngineError              the engine broke                                    500
    │   └── KVCapacityError          one sequence alone exceeds the KV pool          500
    ├── InternalError            a defect of ours                                    500
    └── ConfigurationError       stops start-up, exit code 2
        └── CheckpointError          a model folder we cannot serve

Building an error has no side effect; whoever handles it logs it at ``log_level``.
"""

from __future__ import annotations

from typing import ClassVar


class PenstockError(Exception):
    """Base of all errors of ours.

    ``message`` is for the user: what was wrong, the value, the field, what to do. ``param`` is the
    request field or config key at fault. ``retry_after_s`` is sent as Retry-After where set.
    """

    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    log_level: ClassVar[str] = "error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class ClientError(PenstockError):
    """The caller sent something we cannot honour; the same request will fail again."""

    code = "invalid_request"
    type = "invalid_request_error"
    status = 400
    log_level = "info"


class InvalidRequestError(ClientError):
    """Malformed JSON, a wrong type or a value out of range."""

    code = "invalid_value"


class UnsupportedParameterError(ClientError):
    """A field of the API that this server does not implement; never ignored in silence."""

    code = "unsupported_parameter"


class UnknownParameterError(ClientError):
    """A field that the API does not have."""

    code = "unknown_parameter"


class ContextLengthError(ClientError):
    """Prompt, or prompt plus the asked-for completion, longer than the model's context."""

    code = "context_length_exceeded"


class ModelNotFoundError(ClientError):
    """The request names a model that this server does not serve."""

    code = "model_not_found"
    status = 404


class RequestNotFoundError(ClientError):
    """The request that another one is about does not run here, or does not run any more."""

    code = "request_not_found"
    status = 404


class RouteNotFoundError(ClientError):
    """No such path."""

    code = "route_not_found"
    status = 404


class MethodNotAllowedError(ClientError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405


class RequestTimeoutError(ClientError):
    """The request's body did not arrive within the limit."""

    code = "request_timeout"
    status = 408


class BodyTooLargeError(ClientError):
    """The body is over the configured limit."""

    code = "body_too_large"
    status = 413


class ClientGoneError(ClientError):
    """The client left before its answer; 499, nginx's status for it, is seen only in metrics and logs."""

    code = "client_gone"
    status = 499
    log_level = "debug"


class MovedError(ClientError):
    """The request goes on in another engine; whoever moved it has taken its state there."""

    code = "moved"
    status = 409
    log_level = "info"


class CapacityError(PenstockError):
    """We are whole but cannot take this request, or finish it in time, now."""

    code = "over_capacity"
    type = "server_error"
    status = 503
    retryable = True
    log_level = "warning"


class QueueFullError(CapacityError):
    """The bounded queue in front of an engine is full."""

    code = "queue_full"
    type = "rate_limit_error"
    status = 429


class DeadlineExceededError(CapacityError):
    """The time that the request set itself (`x-request-timeout`) passed before its answer was complete."""

    code = "deadline_exceeded"
    status = 504
    log_level = "info"


class DrainingError(CapacityError):
    """The process is shutting down: running answers finish, new ones are refused."""

    code = "draining"
    log_level = "info"


class NotReadyError(CapacityError):
    """No replica of the model is ready."""

    code = "not_ready"


class ModelLoadError(CapacityError):
    """The model was asleep and its engine could not be loaded; the message has the engine's reason."""

    code = "model_load_failed"


class UpstreamError(PenstockError):
    """A replica failed us."""

    code = "upstream_error"
    type = "upstream_error"
    status = 502
    retryable = True


class UpstreamConnectError(UpstreamError):
    """The connection could not be made or the request could not be sent."""

    code = "upstream_connect_error"


class UpstreamProtocolError(UpstreamError):
    """The answer was broken, cut short, or not HTTP."""

    code = "upstream_protocol_error"


class UpstreamTimeoutError(UpstreamError):
    """The replica sent no byte in time."""

    code = "upstream_timeout"
    status = 504


class EngineError(PenstockError):
    """The engine broke while working on this request."""

    code = "engine_error"


class KVCapacityError(EngineError):
    """One sequence alone needs more KV blocks than the pool has."""

    code = "kv_capacity_exceeded"


class InternalError(PenstockError):
    """A defect of ours; the detail is in the log, not in the answer."""

    code = "internal_error"


class ConfigurationError(PenstockError):
    """A bad argument, file or setting: stops start-up with exit code 2."""

    code = "configuration_error"
    type = "configuration_error"


class CheckpointError(ConfigurationError):
    """A model folder that cannot be served: missing files, unknown architecture, bad config."""

    code = "checkpoint_error"
