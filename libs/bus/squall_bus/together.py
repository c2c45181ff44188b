"""Several keys of one bucket at once: an atomic batch of compare-and-sets, all of them or none.

Not a lane's group: that one is repeated in parts when it is refused, and this one must never be.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from squall_bus.errors import BusUnavailable, PublishUnknown, Refused, from_server
from squall_bus.records import Record
from squall_bus.replies import OneReply
from squall_bus.wire import BadMessage, status_of

if TYPE_CHECKING:
    from squall_bus.link import Link

_HEADROOM = 256
_prefix = secrets.token_hex(6)
_numbers = count()


async def write_together(link: Link, records: Sequence[Record], timeout_s: float) -> list[int]:
    """Store all records, or none; their sequences. Sent once: raises `WrongRevision` when an expectation does not hold,
    `BusUnavailable` when nothing was sent or nobody stores it now, `PublishUnknown` when no answer came."""
    from squall_bus.lane import Pending
    from squall_bus.writes import batch_commands

    await link.wait_connected(timeout_s)
    group = [Pending(record, 0.0, lambda _: None) for record in records]
    for pending in group:
        if pending.size + _HEADROOM > link.max_payload:
            raise BadMessage(f"record of {pending.size} bytes; the server takes {link.max_payload}")
    waiter = OneReply(link.loop, group[-1].subject, timeout_s)
    reply = link.replies.expect(waiter)
    try:
        link.write(batch_commands(group, f"{_prefix}t{next(_numbers):x}", reply))
        answer = await waiter.result()
    except BusUnavailable as error:
        raise PublishUnknown(f"no answer for {records[-1].subject}: {error.message}") from error
    finally:
        link.replies.forget(reply)
    if status_of(answer.raw_headers) or not answer.data:
        raise BusUnavailable("nobody stores the bucket at the moment", subject=records[-1].subject)
    told: dict[str, Any] = json.loads(answer.data)
    if "error" in told:
        refusal = from_server(told["error"], subject=records[-1].subject)
        if isinstance(refusal, Refused):  # the batch was not complete for the server, after a change of its leader say
            raise BusUnavailable(refusal.message, subject=records[-1].subject)
        raise refusal
    return list(range(told["seq"] - len(records) + 1, told["seq"] + 1))
