"""Scaling of pools that exist: settings that replace the declared ones until the next deploy, and what is going on.

A deploy gives every function a new version, hence new pools, which have the declared settings again. A deploy that
changes nothing keeps the version: there the settings are taken back here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from squall.errors import ConflictError, InvalidError, NotFoundError
from squall.http_api.apps import PoolOf, PoolStats, ScalingSettings, UpdateScaling
from squall.spec import ScalingPolicy, validate
from squall_bus import Bus, WrongRevision
from squall_contracts.functions import SPECS, FunctionRecord, PoolRecord, pool_key
from squall_contracts.nodes import ClaimState
from squall_gateway.directory import Directory
from squall_gateway.fleet import Fleet
from squall_gateway.load import backlog
from squall_gateway.pools import Pools
from squall_gateway.targets import Targets, pool_of
from squall_service.clock import Clock
from squall_service.telemetry import log

TRIES = 8
"""Of a compare-and-set against others who change the same pool."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Changes and reads the scaling of pools."""

    bus: Bus
    directory: Directory
    targets: Targets
    pools: Pools
    fleet: Fleet
    clock: Clock

    async def update(self, wanted: UpdateScaling, workspace: str) -> ScalingSettings:
        """The settings as they are from now on. Raises `InvalidError` for values that do not fit each other."""
        pool, function = await self._pool(wanted.pool, workspace)
        if not _changes(wanted):
            present = self.directory.pool(pool.pool) or pool
            return settings(present.scaled(function).spec.scaling)
        if function.variant_of and wanted.min_containers:
            raise InvalidError(
                "min_containers cannot be set for calls with options: nothing is kept warm for them",
                fix="Set it for the function itself.",
            )
        await self.pools.ensure(pool)
        scaling = await self._write(pool, function, wanted)
        log.info("scaling_changed", pool=pool.pool, function=function.spec.name, min=scaling.min_containers)
        return settings(scaling)

    async def _write(self, pool: PoolRecord, function: FunctionRecord, wanted: UpdateScaling) -> ScalingPolicy:
        bucket, key = self.bus.kv(SPECS), pool_key(pool.pool)
        for _ in range(TRIES):
            entry = await bucket.get(key)
            if entry is None:
                raise NotFoundError(f"the pool of {function.spec.name!r} was removed: a newer version is deployed")
            record = PoolRecord.decode(entry.value)
            scaling = changed(record.scaled(function).spec.scaling, wanted)
            validate(replace(function.spec, scaling=scaling))
            record = replace(record, scaling=scaling)
            try:
                await bucket.update(key, record.encode(), entry.revision)
            except WrongRevision:
                continue
            self.directory.saw_pool(record)
            return scaling
        raise ConflictError(f"the scaling of {function.spec.name!r} was changed by others, {TRIES} times in a row")

    async def reset(self, app_id: str) -> None:
        """A deploy that changed nothing: the declared settings count again."""
        bucket = self.bus.kv(SPECS)
        for pool in self.directory.pools_of(app_id):
            entry = await bucket.get(pool_key(pool.pool)) if pool.scaling is not None else None
            if entry is None:
                continue
            record = replace(PoolRecord.decode(entry.value), scaling=None)
            try:
                await bucket.update(pool_key(pool.pool), record.encode(), entry.revision)
            except WrongRevision:
                continue  # changed at this moment: after the deploy, as far as anybody can tell
            self.directory.saw_pool(record)

    async def stats(self, wanted: PoolOf, workspace: str) -> PoolStats:
        """What the pool does at the moment."""
        pool, function = await self._pool(wanted, workspace)
        rows = [row for row in self.fleet.running(self.clock.now()).values() if row.pool == pool.pool]
        running = sum(row.inputs for row in rows)
        ready = sum(claim.state == ClaimState.READY for claim in self.fleet.claims_of(pool.pool))
        inputs = await backlog(self.bus, pool.pool)
        return PoolStats(
            backlog=max(0, inputs - running),
            num_total_runners=ready,
            num_running_inputs=running,
            input_headroom=max(0, ready * function.spec.scaling.max_inputs - running),
        )

    async def _pool(self, wanted: PoolOf, workspace: str) -> tuple[PoolRecord, FunctionRecord]:
        _, function = await self.targets.function(
            wanted.app_id, wanted.function, wanted.function_id, wanted.options, workspace
        )
        return pool_of(function, wanted.parameters), function


def changed(present: ScalingPolicy, wanted: UpdateScaling) -> ScalingPolicy:
    """The settings with the wanted ones in place of theirs."""
    given = {
        "min_containers": wanted.min_containers,
        "buffer_containers": wanted.buffer_containers,
        "scaledown_window_s": wanted.scaledown_window_s,
    }
    policy = replace(present, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    return policy if wanted.max_containers is None else replace(policy, max_containers=wanted.max_containers or None)


def settings(policy: ScalingPolicy) -> ScalingSettings:
    """What of a policy can be changed while it is in use."""
    return ScalingSettings(
        policy.min_containers, policy.max_containers, policy.buffer_containers, policy.scaledown_window_s
    )


def _changes(wanted: UpdateScaling) -> bool:
    values = (wanted.min_containers, wanted.max_containers, wanted.buffer_containers, wanted.scaledown_window_s)
    return any(value is not None for value in values)
