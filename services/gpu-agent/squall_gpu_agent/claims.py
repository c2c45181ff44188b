"""Claims: what the scheduler wants on this node. Folds the bucket `containers`; starts, drains and forgets tenancies.

At the start of the agent no container of its node is alive (the process backend's die with it), so claims of this node
that say otherwise are left over from an earlier life and are deleted; the scheduler places anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from squall.errors import InvalidError
from squall_bus import BusError, Change, KeyValue, WrongRevision
from squall_contracts.envelope import BadMessage
from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_gpu_agent.backend import EXIT_GRACE_S
from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.tenancy import Tenancy
from squall_service.telemetry import log

REMEMBER_ENDED = 1000
MakeTenancy = Callable[[str, ContainerClaim, int], Tenancy]


class Claims:
    """The claims of every node, and the tenancies of this one."""

    def __init__(self, bucket: KeyValue, node: str, tasks: Tasks, make: MakeTenancy) -> None:
        self._bucket = bucket
        self._node = node
        self._tasks = tasks
        self._make = make
        self._known: dict[str, ContainerClaim] = {}
        self._ended: deque[str] = deque(maxlen=REMEMBER_ENDED)
        """Containers of ours that are over: a late echo of their claims must not start them again."""
        self.tenancies: dict[str, Tenancy] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def serves(self, pool: str) -> bool:
        """Whether any node has a ready container of that pool."""
        return any(claim.pool == pool and claim.state == ClaimState.READY for claim in self._known.values())

    async def watch(self, synced: Callable[[], None]) -> None:
        """Follow the bucket for ever."""
        async with self._bucket.watch() as changes:
            async for change in changes:
                if change.synced:
                    synced()
                else:
                    self.on_claim_changed(change)

    def on_claim_changed(self, change: Change) -> None:
        """One claim, of any node, was written or deleted."""
        claim = _decode(change)
        if claim is None:
            self._known.pop(change.key, None)
        else:
            self._known[change.key] = claim
        tenancy = self.tenancies.get(change.key)
        if tenancy is not None:
            tenancy.on_claim_changed(claim, change.revision)
        if (
            claim is not None
            and claim.node == self._node
            and (tenancy is None or tenancy.claim.container != claim.container)
        ):
            self._on_own_claim(change.key, claim, change.revision)

    def _on_own_claim(self, key: str, claim: ContainerClaim, revision: int) -> None:
        if claim.container in self._ended:
            return
        match claim.state:
            case ClaimState.PROPOSED:
                self._tasks.start(self._tenancy(key, claim, revision), f"container {claim.container}")
            case ClaimState.STARTING | ClaimState.READY | ClaimState.DRAINING:
                self._tasks.start(self._forget(key, claim, revision), f"left-over claim {key}")
            case _:
                pass  # refused or failed: the scheduler takes note and removes it

    async def _tenancy(self, key: str, claim: ContainerClaim, revision: int) -> None:
        while key in self.tenancies:  # the place was given to a new container while the old one still ends
            await self.tenancies[key].over.wait()
        tenancy = self._make(key, claim, revision)
        self.tenancies[key] = tenancy
        self._idle.clear()
        try:
            await tenancy.live()
        finally:
            self._ended.append(claim.container)
            del self.tenancies[key]
            tenancy.over.set()
            if not self.tenancies:
                self._idle.set()

    async def _forget(self, key: str, claim: ContainerClaim, revision: int) -> None:
        log.info("left_over_claim_deleted", claim=key, container=claim.container, state=claim.state)
        try:
            await self._bucket.delete(key, revision)
        except WrongRevision:
            pass  # somebody has dealt with it
        except BusError as error:
            log.warning("claim_not_deleted", claim=key, reason=error.message)

    def device_failed(self, uuid: str, why: str) -> None:
        """The container that has this device must end."""
        for tenancy in list(self.tenancies.values()):
            tenancy.device_failed(uuid, why)

    async def drain(self, grace_s: float, exit_grace_s: float = EXIT_GRACE_S) -> None:
        """End every container: what runs may take `grace_s` to finish, and its `@exit` hooks so long after that."""
        for tenancy in list(self.tenancies.values()):
            tenancy.leave()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("drain_interrupts_inputs", containers=len(self.tenancies))
            for tenancy in list(self.tenancies.values()):
                tenancy.hurry(exit_grace_s)
            await self._idle.wait()


def _decode(change: Change) -> ContainerClaim | None:
    if change.value is None:
        return None
    try:
        return ContainerClaim.decode(change.value)
    except (BadMessage, InvalidError) as error:
        log.error("claim_not_understood", claim=change.key, reason=error.message)
        return None
