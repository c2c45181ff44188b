"""Webhooks as they lie in the bucket `webhooks`: who has any, what is to be delivered, what nobody took.

The call's own record (JOURNAL) says where its end is to be told, its result (RESULTS) that it has ended: everything
here is made of those two, whoever wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall_contracts.envelope import HotMessage
from squall_contracts.topology import DAY_S

WEBHOOKS = "webhooks"
PENDING, DELIVERED, DEAD = "pending", "delivered", "dead"
KEPT_S = {PENDING: 14 * DAY_S, DELIVERED: DAY_S, DEAD: 7 * DAY_S}
"""How long a delivery is kept in each state. A pending one is written again with each try."""
LETTER_S = 7 * DAY_S
_EVENT, _DEAD, USER_PREFIX = "event", "dead", "user."


@dataclass(frozen=True)
class WebhookUser(HotMessage):
    """A workspace whose calls have webhooks: gateways take its results from the consumer `webhooks-<workspace>` of each
    shard. Key `user.<workspace>`; written by a gateway, after those consumers and before the first such call."""

    TYPE: ClassVar[str] = "webhook_user"

    workspace: str
    since: float


@dataclass(frozen=True)
class WebhookDelivery(HotMessage):
    """The end of one input, on its way to one receiver. Key `event.<workspace>.<call>.<index>`: created once, then each
    step is a compare-and-set by the gateway that has it at the moment."""

    TYPE: ClassVar[str] = "webhook_delivery"

    call: str
    index: int
    workspace: str
    url: str
    event: str
    """`call.succeeded` and so on."""
    app: str
    """Id."""
    function: str
    """Name, with its method."""
    created_at: float
    state: str
    body: bytes = b""
    """What is sent, the same bytes each time; empty when it was delivered."""
    tries: int = 0
    """Since the beginning, or since it was redriven."""
    next_at: float = 0.0
    """Not before; of a pending one."""
    recent: list[list[Any]] = field(default_factory=list)
    """[at, seconds it took, what came of it] of the last tries, newest first."""

    @property
    def id(self) -> str:
        """`webhook-id`: the same at every try, so that a receiver can tell repetitions."""
        return f"{self.call}-{self.index}"


@dataclass(frozen=True)
class WebhookLetter(HotMessage):
    """A delivery that was given up. Key `dead.<workspace>.<call>.<index>`: it counts while the delivery is dead."""

    TYPE: ClassVar[str] = "webhook_letter"

    call: str
    index: int
    workspace: str
    app: str
    at: float


def user_key(workspace: str) -> str:
    """Key of a workspace that has webhooks."""
    return f"{USER_PREFIX}{workspace}"


def delivery_key(workspace: str, call: str, index: int) -> str:
    """Key of a delivery."""
    return f"{deliveries_of(workspace, call)}{index}"


def deliveries_of(workspace: str, call: str = "") -> str:
    """Prefix of the keys of a workspace's deliveries, or of a call's."""
    return f"{_EVENT}.{workspace}." + (f"{call}." if call else "")


def letter_key(workspace: str, call: str, index: int) -> str:
    """Key of a delivery that was given up."""
    return f"{letters_of(workspace)}{call}.{index}"


def letters_of(workspace: str) -> str:
    """Prefix of the keys of a workspace's dead deliveries."""
    return f"{_DEAD}.{workspace}."


def results_consumer(workspace: str) -> str:
    """The durable that hands on a workspace's results, in each shard."""
    return f"webhooks-{workspace}"
