"""Apps: publishing versions, keeping ephemeral ones alive, stopping them. Owns the buckets `apps` and `specs`.

A publish writes new function versions first and moves the app's pointer last, by one compare-and-set: a caller sees the
old version in full or the new one in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from squall.errors import ConflictError, InvalidError
from squall.http_api.apps import PublishApp, PublishedApp
from squall.ids import check_name, check_tag, new_id
from squall.spec import FunctionSpec, digest, to_wire, validate
from squall_bus import Bus, KeyExists, WrongRevision
from squall_contracts.builds import scoped
from squall_contracts.functions import (
    APPS,
    SPECS,
    AppRecord,
    DeployedVersion,
    FunctionRecord,
    PoolRecord,
    app_name_key,
    pool_id,
    pool_key,
)
from squall_contracts.retention import SPAWNED_S
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.directory import Directory, KnownApp
from squall_gateway.image_records import ImageRecords
from squall_gateway.image_sources import ImageSources
from squall_gateway.objects import Objects
from squall_gateway.policy.schedules import check_schedule
from squall_gateway.policy.web_names import check_web, owner_label, web_names
from squall_gateway.pools import Pools
from squall_gateway.pruning import check_images
from squall_gateway.secrets import Secrets
from squall_gateway.web.addresses import Addresses
from squall_gateway.web.name_claims import NameClaims
from squall_gateway.webhooks.users import WebhookUsers
from squall_service.clock import Clock

ALIVE_S = 25.0
"""Five heartbeats of the SDK: one lost packet, or a laptop's garbage collection, must not stop an app."""
MODES = ("ephemeral", "detached", "deployed")
STRATEGIES = ("rolling", "recreate")
TRIES = 8
"""Of a compare-and-set against other gateways and clients."""
KEPT_S = SPAWNED_S + 24 * 3600.0
"""Every `squall run` leaves an app behind: it is of use as long as its calls can be looked at."""
HISTORY = 50
"""Versions that a deployed app remembers."""

MAX_TAG_CHARACTERS = 63
_POOL_PREFIX = pool_key("")

Change = Callable[[AppRecord], AppRecord]
"""The record as it should be; the same object when nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Apps:
    """Writes app records."""

    bus: Bus
    directory: Directory
    pools: Pools
    blobs: BlobPlaces
    clock: Clock
    secrets: Secrets
    addresses: Addresses
    names: NameClaims
    webhooks: WebhookUsers
    objects: Objects
    images: ImageRecords
    sources: ImageSources

    # ------------------------------------------------------------------ publish

    async def publish(self, wanted: PublishApp, workspace: str) -> PublishedApp:
        """Make or change an app. Raises `InvalidError` for a bad declaration, `ConflictError` for a lost race."""
        await self._check(wanted, workspace)
        functions = tuple(
            replace(spec, image=scoped(spec.image, workspace, wanted.environment)) for spec in wanted.functions
        )
        wanted = replace(wanted, functions=functions)
        await self.secrets.check(wanted.functions, workspace)
        await self.webhooks.declared(wanted.functions, workspace)
        await self.objects.check_volumes(wanted.functions, workspace)
        await self.sources.check(*(spec.image for spec in wanted.functions), workspace=workspace)
        for _ in range(TRIES):
            known = await self._present(wanted, workspace)
            if wanted.only_new and known is not None and known.record.version and known.record.state != "stopped":
                return published(known.record, unchanged=True)
            record = next_version(known.record if known else None, wanted, workspace, self.clock.now())
            self._check_web_names(record)
            if known is not None and record is known.record:
                return published(record, unchanged=True)
            await self._write_functions(wanted.functions, record)
            await check_images(self.images, {spec.image.id for spec in wanted.functions})
            await self.names.claim(record)
            try:
                await self._write_app(record, known)
            except WrongRevision:
                continue
            return published(record)
        raise ConflictError(f"app {wanted.name!r} was changed by others at the same time, {TRIES} times in a row")

    async def _check(self, wanted: PublishApp, workspace: str) -> None:
        check_name(wanted.name, "app")
        check_name(wanted.environment, "environment")
        if wanted.mode not in MODES:
            raise InvalidError(f"app mode {wanted.mode!r} is not one of {', '.join(MODES)}")
        check_strategy(wanted.strategy)
        if wanted.tag:
            check_tag(wanted.tag)
        for spec in wanted.functions:
            check_name(spec.name, "function")
            validate(spec)
            check_schedule(spec, self.clock.now())
            check_web(spec, self.addresses.domain)
            if not spec.methods and not spec.is_class:
                raise InvalidError(f"function {spec.name!r} has no methods")
        names = [spec.name for spec in wanted.functions]
        if len(set(names)) < len(names):
            raise InvalidError(f"function names {sorted(names)} are not all different")
        for bundle in {spec.code.bundle_sha256 for spec in wanted.functions} - {""}:
            if await self.blobs.of(workspace).size(bundle) is None:
                raise InvalidError(f"code bundle {bundle} is not there", fix="Upload it with PUT /v1/blobs first.")

    def _check_web_names(self, record: AppRecord) -> None:
        """One address, one app: only apps that run for their client may take over another's, and only at home."""
        for name in record.web:
            for other in self.directory.web.live(name):
                if other.app_id == record.app_id:
                    continue
                if (other.workspace, other.environment) != (record.workspace, record.environment):
                    raise ConflictError(
                        f"the web address {name!r} belongs to another workspace or environment",
                        fix="Give the function another `label=` or another custom domain.",
                    )
                if record.state == other.state == "deployed":
                    raise ConflictError(
                        f"the web address {name!r} belongs to {other.web[name]!r} of app {other.name!r}",
                        fix="Give one of the functions another `label=`, or stop the other app.",
                    )

    async def _present(self, wanted: PublishApp, workspace: str) -> KnownApp | None:
        """The app that is changed; None when it is new."""
        if wanted.mode != "deployed":
            return None if wanted.app_id is None else await self.directory.app(wanted.app_id, workspace, fresh=True)
        pointer = await self._pointer(wanted, workspace)
        entry = await self.bus.kv(APPS).get(pointer)
        if entry is None:  # the name was taken and nothing came after it: the app is made under that id
            return KnownApp(empty_app(pointer, wanted, workspace, self.clock.now()), 0)
        return self.directory.saw_app(AppRecord.decode(entry.value), entry.revision)

    async def _pointer(self, wanted: PublishApp, workspace: str) -> str:
        """The app id behind a name; taken for a new app if there is none."""
        key = app_name_key(workspace, wanted.environment, wanted.name)
        bucket = self.bus.kv(APPS)
        entry = await bucket.get(key)
        if entry is None:
            fresh = new_id("ap")
            try:
                await bucket.create(key, fresh.encode())
                return fresh
            except KeyExists:
                entry = await bucket.get(key)
        if entry is None:
            raise ConflictError(f"the name {wanted.name!r} changes hands at the moment")
        return entry.value.decode()

    async def _write_functions(self, specs: Sequence[FunctionSpec], app: AppRecord) -> None:
        """Every version before the pointer that makes it visible."""
        bucket = self.bus.kv(SPECS)
        for spec in specs:
            record = FunctionRecord(
                function_id=app.functions[spec.name],
                app_id=app.app_id,
                app_name=app.name,
                workspace=app.workspace,
                environment=app.environment,
                version=app.version,
                ephemeral=app.state != "deployed",
                spec=spec,
                created_at=app.updated_at,
            )
            try:
                await bucket.create(record.function_id, record.encode())
            except KeyExists:
                pass  # the same version in full: its id is its content
            self.directory.saw_function(record)
            await self.open_pool_if_kept_warm(record)

    async def open_pool_if_kept_warm(self, function: FunctionRecord) -> None:
        """Containers that are wanted without any call: the pool must be known before its first input."""
        if function.spec.scaling.min_containers == 0 or function.spec.parameters:
            return
        pool = PoolRecord(
            pool=pool_id(function.function_id),
            function_id=function.function_id,
            app_id=function.app_id,
            workspace=function.workspace,
        )
        await self.pools.ensure(pool)

    async def _write_app(self, record: AppRecord, known: KnownApp | None) -> KnownApp:
        revision = 0 if known is None else known.revision
        written = await self.bus.kv(APPS).update(record.app_id, record.encode(), revision)
        return self.directory.saw_app(record, written)

    # ------------------------------------------------------------------ life

    async def heartbeat(self, app_id: str, workspace: str) -> AppRecord:
        """The client of an ephemeral app lives. The state it then has."""

        def renew(record: AppRecord) -> AppRecord:
            if record.state != "ephemeral":
                return record
            return replace(record, alive_until=self.clock.now() + ALIVE_S)

        return await self.change(app_id, workspace, renew)

    async def set_tags(self, app_id: str, workspace: str, tags: Mapping[str, str]) -> AppRecord:
        """Replace the tags. Raises `InvalidError` for a value that is too long."""
        for name, value in tags.items():
            if not 0 < len(name) <= MAX_TAG_CHARACTERS or len(value) > MAX_TAG_CHARACTERS:
                raise InvalidError(f"tag {name!r}: names and values have at most {MAX_TAG_CHARACTERS} characters")
        return await self.change(app_id, workspace, lambda record: replace(record, tags=dict(tags)))

    async def mark_stopped(self, app_id: str, workspace: str, reason: str) -> AppRecord:
        """No call is accepted from here on; autoscaler and agents follow."""

        def stop(record: AppRecord) -> AppRecord:
            if record.state == "stopped":
                return record
            return replace(record, state="stopped", stop_reason=reason, alive_until=0.0, updated_at=self.clock.now())

        return await self.change(app_id, workspace, stop)

    async def change(self, app_id: str, workspace: str, change: Change) -> AppRecord:
        """Write what `change` makes of the record; again on the newer one if somebody else was faster."""
        for attempt in range(TRIES):
            known = await self.directory.app(app_id, workspace, fresh=attempt > 0)
            record = change(known.record)
            if record is known.record:
                return record
            if record.web != known.record.web:
                self._check_web_names(record)
                await self.names.claim(record)
            try:
                return (await self._write_app(record, known)).record
            except WrongRevision:
                continue
        raise ConflictError(f"app {app_id} was changed by others at the same time, {TRIES} times in a row")

    def abandoned(self) -> list[AppRecord]:
        """Ephemeral apps whose client has not been heard of in time, as far as memory knows."""
        return [known.record for known in self.directory.apps() if self.is_abandoned(known.record)]

    def forgettable(self) -> list[AppRecord]:
        """Apps that were never deployed and were stopped so long ago that not even a result of theirs is kept."""
        before = self.clock.now() - KEPT_S
        records = [known.record for known in self.directory.apps()]
        return [r for r in records if r.state == "stopped" and not r.history and r.updated_at < before]

    async def forget(self, records: Sequence[AppRecord]) -> None:
        """Remove apps and everything declared for them. Variants are named nowhere: one look at all functions."""
        gone, specs = {record.app_id for record in records}, self.bus.kv(SPECS)
        for entry in await specs.entries() if gone else []:
            if not entry.key.startswith(_POOL_PREFIX) and FunctionRecord.decode(entry.value).app_id in gone:
                await specs.delete(entry.key)
        for app_id in gone:
            await self.bus.kv(APPS).delete(app_id)

    def is_abandoned(self, record: AppRecord) -> bool:
        """Whether its client is gone."""
        return record.state == "ephemeral" and 0 < record.alive_until < self.clock.now()


def function_id(app_id: str, version: int, spec: FunctionSpec) -> str:
    """`fu-` and 20 hex digits: the content of one version of one function of one app."""
    return "fu-" + digest([app_id, version, spec.name, to_wire(spec)])[:20]


def empty_app(app_id: str, wanted: PublishApp, workspace: str, now: float) -> AppRecord:
    """An app before its first version."""
    return AppRecord(
        app_id=app_id,
        name=wanted.name,
        workspace=workspace,
        environment=wanted.environment,
        state=wanted.mode,
        version=0,
        functions={},
        created_at=now,
        updated_at=now,
        tags=dict(wanted.tags),
    )


def next_version(present: AppRecord | None, wanted: PublishApp, workspace: str, now: float) -> AppRecord:
    """The record after a publish; the present one itself when nothing changes. Pure but for a new app's id."""
    app = present or empty_app(new_id("ap"), wanted, workspace, now)
    if wanted.mode != "deployed":
        return _with_functions(app, wanted, now)
    same = versions_of(app, app.version, wanted.functions)
    if app.state != "stopped" and same == app.functions and app.version:
        return app
    version = app.version + 1
    functions = versions_of(app, version, wanted.functions)
    web = web_names(owner_label(app.workspace, app.environment), app.name, wanted.functions, dev=False)
    line = DeployedVersion(version=version, deployed_at=now, functions=functions, tag=wanted.tag, web=web)
    return replace(
        app,
        state="deployed",
        version=version,
        functions=functions,
        web=web,
        updated_at=now,
        stop_reason="",
        tags=dict(wanted.tags) or app.tags,
        history=(*app.history, line)[-HISTORY:],
    )


def _with_functions(app: AppRecord, wanted: PublishApp, now: float) -> AppRecord:
    """Ephemeral apps have one version that grows."""
    if app.state == "stopped":
        raise ConflictError(f"app {app.app_id} is stopped", fix="Run the app again.")
    if app.state == "deployed":
        raise ConflictError(f"app {app.app_id} is deployed", fix="Deploy it to change it.")
    kept = {} if wanted.replaces else app.functions
    functions = {**kept, **versions_of(app, 1, wanted.functions)}
    if functions == app.functions and app.version:
        return app
    alive_until = now + ALIVE_S if app.state == "ephemeral" else 0.0
    owner = owner_label(app.workspace, app.environment)
    web = {} if wanted.replaces else dict(app.web)
    web.update(web_names(owner, app.name, wanted.functions, dev=True))
    return replace(app, version=1, functions=functions, web=web, updated_at=now, alive_until=alive_until)


def versions_of(app: AppRecord, version: int, specs: Sequence[FunctionSpec]) -> Mapping[str, str]:
    """Function ids by name."""
    return {spec.name: function_id(app.app_id, version, spec) for spec in specs}


def check_strategy(strategy: str) -> None:
    """Raise `InvalidError` for what is none."""
    if strategy not in STRATEGIES:
        raise InvalidError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")


def published(record: AppRecord, *, unchanged: bool = False) -> PublishedApp:
    """The answer to a publish."""
    return PublishedApp(
        app_id=record.app_id,
        name=record.name,
        version=record.version,
        functions=record.functions,
        unchanged=unchanged,
    )
