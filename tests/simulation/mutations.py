"""Bugs, put in on purpose: what the simulation must catch. Each is a patch of squall's own code, none of the model.

Half of them are bugs that squall had: the simulation, or a harness beside it, found them first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tests.simulation.bus import SimKeyValue

from squall.mapping import MapSession
from squall_autoscaler import handlers as autoscaler_handlers
from squall_autoscaler.state import Sample
from squall_gateway.cancels import Cancels as GatewayCancels
from squall_gpu_agent import attempts
from squall_gpu_agent.cancels import Cancels
from squall_gpu_agent.held import Held
from squall_gpu_agent.history import NO_PAST, History
from squall_gpu_agent.policy import retry
from squall_gpu_agent.policy.retry import Cause, Failure
from squall_gpu_agent.settlement import Settlement
from squall_gpu_agent.tenancy import Tenancy
from squall_scheduler import call_repairs
from squall_scheduler.policy import claims, reconciling
from squall_scheduler.policy.reconciling import Expire, Leave, Requeue
from squall_scheduler.reconciler import Reconciler
from squall_service.leases import LeaderLease

Patch = tuple[Any, str, Any]


def _no_history() -> list[Patch]:
    async def read(self: History, held: object) -> object:
        return NO_PAST

    return [(History, "read", read)]


def _one_retry_more() -> list[Patch]:
    decide = retry.decide

    def generous(policy: Any, *rest: Any, **more: Any) -> Any:
        return decide(replace(policy, max_retries=policy.max_retries + 1), *rest, **more)

    return [(attempts, "decide", generous)]


def _unknown_is_none() -> list[Patch]:
    decide = autoscaler_handlers.decide

    def blind(sample: Sample, *rest: Any) -> Any:
        return decide(replace(sample, inputs=sample.inputs or 0, heard=True), *rest)

    return [(autoscaler_handlers, "decide", blind)]


def _claims_without_cas() -> list[Patch]:
    create = SimKeyValue.create

    async def overwrite(self: SimKeyValue, key: str, value: bytes, ttl_s: float | None = None) -> int:
        return await (self.put if self.bucket == "containers" else create.__get__(self))(key, value, ttl_s)

    return [(SimKeyValue, "create", overwrite)]


def _cancel_without_record() -> list[Patch]:
    async def record(self: GatewayCancels, first: object, indices: Any) -> int:
        return len(indices)

    return [(GatewayCancels, "_record", record)]


def _map_in_order_of_arrival() -> list[Patch]:
    take = MapSession.take

    def hasty(self: MapSession) -> Iterator[Any]:
        self._order = False
        yield from take(self)

    return [(MapSession, "take", hasty)]


def _leader_never_again() -> list[Patch]:
    lead = LeaderLease._lead

    async def once(self: LeaderLease, leadership: Any, on_leading: Any) -> bool:
        await lead(self, leadership, on_leading)
        return True

    return [(LeaderLease, "_lead", once)]


def _young_machine_cancels() -> list[Patch]:
    def recent(self: Cancels, call: str, index: int) -> bool:
        horizon = self._clock.monotonic() - 60.0
        return bool(self._at) and max(self._at.get((call, index), 0.0), self._at.get((call, None), 0.0)) > horizon

    return [(Cancels, "recent", recent)]


def _losses_use_up_retries() -> list[Patch]:
    classify = attempts.classify

    def harsh(held: Held, end: Any) -> Failure:
        return replace(classify(held, end), cause=Cause.EXCEPTION)

    return [(attempts, "classify", harsh)]


def _superseded_result_is_told() -> list[Patch]:
    store = Settlement._store

    async def own(self: Settlement, held: Held, result: Any, data: bytes, ttl_s: float) -> bytes | None:
        return data if await store(self, held, result, data, ttl_s) is not None else None

    return [(Settlement, "_store", own)]


def _stopped_while_busy() -> list[Patch]:
    async def drained(self: Tenancy, pooled: object) -> None:
        await self._drain.wait()

    return [(Tenancy, "_drained", drained)]


def _busy_is_drained() -> list[Patch]:
    return [(claims, "_cost_of_ending", lambda pool, claim: (0, 0.0))]


def _map_repeats() -> list[Patch]:
    receive = MapSession._receive

    def forgetful(self: MapSession, item: Any) -> None:
        self._seen = bytearray(len(self._seen))
        receive(self, item)

    return [(MapSession, "_receive", forgetful)]


def _nothing_is_put_back() -> list[Patch]:
    judge = reconciling.judge

    def idle(seen: Any, now: float) -> Any:
        found = judge(seen, now)
        return Leave(until=now + 8.0, reason="") if isinstance(found, Requeue) else found

    return [(call_repairs, "judge", idle)]


def _delivered_ones_expire() -> list[Patch]:
    judge = reconciling.judge

    def strict(seen: Any, now: float) -> Any:
        return Expire(reason="its deadline has passed") if now >= seen.deadline else judge(seen, now)

    return [(call_repairs, "judge", strict)]


def _lost_queue_waits() -> list[Patch]:
    async def gone(self: Reconciler) -> None:
        return None

    return [(Reconciler, "_work_stream", gone)]


MUTATIONS: dict[str, Callable[[], list[Patch]]] = {
    "busy_is_drained": _busy_is_drained,
    "cancel_without_record": _cancel_without_record,
    "claims_without_cas": _claims_without_cas,
    "delivered_ones_expire": _delivered_ones_expire,
    "leader_never_again": _leader_never_again,
    "losses_use_up_retries": _losses_use_up_retries,
    "lost_queue_waits": _lost_queue_waits,
    "map_in_order_of_arrival": _map_in_order_of_arrival,
    "map_repeats": _map_repeats,
    "no_history": _no_history,
    "nothing_is_put_back": _nothing_is_put_back,
    "one_retry_more": _one_retry_more,
    "stopped_while_busy": _stopped_while_busy,
    "superseded_result_is_told": _superseded_result_is_told,
    "unknown_is_none": _unknown_is_none,
    "young_machine_cancels": _young_machine_cancels,
}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """With this bug while the block runs."""
    patches = MUTATIONS[name]() if name is not None else []
    before = [(target, attribute, target.__dict__[attribute]) for target, attribute, _ in patches]
    for target, attribute, value in patches:
        setattr(target, attribute, value)
    try:
        yield
    finally:
        for target, attribute, value in before:
            setattr(target, attribute, value)
