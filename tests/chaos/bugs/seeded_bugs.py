"""Bugs that the harness must catch, as patches of the services' modules. No product code knows of them.

Each is a mistake that somebody could make: `@bug(name, module)` gets the module right after it was executed, and
replaces something in it by a version that goes wrong while the bug is on. A name that is gone is an AttributeError, one
that takes other arguments a TypeError, and the service does not start: the bug must follow the code.
"""

import asyncio
import hashlib
import importlib.machinery
import inspect
import os
import sys
from collections import defaultdict
from dataclasses import replace

PATCHES = defaultdict(list)
BUGS = {}
"""Name to what somebody got wrong."""


def bug(name, module, about=""):
    """Registers a patch; a bug may need several."""
    if about:
        BUGS[name] = about

    def register(patch):
        PATCHES[module].append((name, patch))
        return patch

    return register


class Patching:
    """Finds the modules that have patches, and applies these once they are executed."""

    def __init__(self, folder):
        self._folder = folder

    def find_spec(self, name, path, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                for bug_name, patch in PATCHES[name]:
                    file = os.path.join(self._folder, bug_name)
                    patch(module, lambda file=file: os.path.exists(file))

            spec.loader.exec_module = exec_module
        return spec


def wrong(owner, name, version):
    """Replace `owner.name` by `version(right)`."""
    right = getattr(owner, name)
    replacement = version(right)
    taken, expected = parameters(replacement), parameters(right)
    if taken not in (expected, "*args, **more"):
        raise TypeError(f"a seeded bug has {name}({taken}); the code has {name}({expected})")
    setattr(owner, name, replacement)


def parameters(function):
    """Names and default values, without types."""
    every = inspect.signature(function).parameters.values()
    return ", ".join(str(each.replace(annotation=each.empty)) for each in every)


# ---------------------------------------------------------------------- agent


@bug("ack-before-record", "squall_gpu_agent.pool", "the queue message is acknowledged when the call begins")
def _(module, on):
    def version(right):
        def start(self, held, container):
            if on():
                held.delivery.ack()
            right(self, held, container)

        return start

    wrong(module.Pool, "_start", version)


@bug("no-history-read", "squall_gpu_agent.history", "a redelivered call is begun without a look at its history")
def _(module, on):
    wrong(module.History, "needed", lambda right: lambda self, held, now: not on() and right(self, held, now))


@bug("stale-failure", "squall_gpu_agent.settlement", "an agent records failures of calls whose leases it has lost")
def _(module, on):
    wrong(
        module.Settlement,
        "_fence_left_s",
        lambda right: lambda self, held: module.PUBLISH_S if on() else right(self, held),
    )


@bug("stale-ack", "squall_gpu_agent.settlement", "an agent acknowledges calls whose leases it has lost")
def _(module, on):
    def version(right):
        def abandon(self, held):
            if on():
                held.delivery.ack()
            right(self, held)

        return abandon

    wrong(module.Settlement, "abandon", version)


@bug("retries-not-counted", "squall_gpu_agent.settlement", "failures are not written to ATTEMPTS")
def _(module, on):
    def version(right):
        async def publish_attempt(self, held, message):
            return held.attempts_seq if on() else await right(self, held, message)

        return publish_attempt

    wrong(module.Settlement, "_publish_attempt", version)


@bug("no-attempt-cap", "squall_gpu_agent.attempts", "a call that kills its containers is given back for ever")
def _(module, on):
    def version(right):
        def decide(*args, **more):
            return right(*args, **more, max_infra_failures=10**6) if on() else right(*args, **more)

        return decide

    wrong(module, "decide", version)


@bug("timeout-ignored", "squall_gpu_agent.execution", "nobody stops code that runs over its timeout")
def _(module, on):
    wrong(module.RunningInput, "_over_time", lambda right: lambda self: None if on() else right(self))


@bug("cancel-ignored", "squall_gpu_agent.cancels", "agents do not hear cancels")
def _(module, on):
    wrong(
        module.CancelListener,
        "on_cancel_requested",
        lambda right: lambda self, message: None if on() else right(self, message),
    )


@bug("expired-run-anyway", "squall_gpu_agent.pool", "a call that waited past its deadline is begun")
def _(module, on):
    def version(right):
        def read_request(data):
            request = right(data)
            return replace(request, deadline=float("inf")) if on() else request

        return read_request

    wrong(module, "read_request", version)


@bug("blob-after-record", "squall_service.blobs", "a large result is stored after the record that names it")
def _(module, on):
    async def later(right, self, what):
        await asyncio.sleep(5.0)
        await right(self, what)

    def bytes_version(right):
        async def put_bytes(self, payload):
            if not on():
                return await right(self, payload)
            LATER.append(asyncio.get_running_loop().create_task(later(right, self, payload)))
            return hashlib.sha256(payload).hexdigest(), len(payload)

        return put_bytes

    def file_version(right):
        async def put_file(self, path):
            return await self.put_bytes(path.read_bytes()) if on() else await right(self, path)

        return put_file

    wrong(module.Blobs, "put_bytes", bytes_version)
    wrong(module.Blobs, "put_file", file_version)


LATER = []
"""Tasks that somebody forgot."""


@bug("kill-while-busy", "squall_gpu_agent.tenancy", "a container that shall go is killed with what runs in it")
def _(module, on):
    def version(right):
        async def drained(self, pooled):
            await self._drain.wait()
            if on():
                pooled.container.kill("scaled down")
            await right(self, pooled)

        return drained

    wrong(module.Tenancy, "_drained", version)


# ---------------------------------------------------------------------- what lies on the bus


@bug("unconditional-write", "squall_contracts.topology", "a result is written whether or not there is one")
def _(module, on):
    def version(right):
        def build(*args, **more):
            layout = right(*args, **more)
            if not on():
                return layout
            streams = [
                replace(spec, discard="old", discard_new_per_subject=False)
                if spec.name.startswith("RESULTS_")
                else spec
                for spec in layout.streams
            ]
            return replace(layout, streams=tuple(streams))

        return build

    wrong(module, "build", version)


# ---------------------------------------------------------------------- gateway


@bug("map-out-of-order", "squall_gateway.api.maps", "results of a map are given under another's index")
def _(module, on):
    wrong(
        module,
        "result_frame",
        lambda right: (
            lambda record, cursor=None: right(replace(record, index=record.index ^ 1) if on() else record, cursor)
        ),
    )


@bug("new-id-for-a-repeat", "squall_gateway.api.calls", "a request that is repeated becomes another call")
def _(module, on):
    from squall.ids import new_call_id

    def version(right):
        def read_call_headers(found, shards, call=None):
            headers = right(found, shards, call)
            return headers._replace(call=new_call_id(shards)) if on() else headers

        return read_call_headers

    wrong(module, "read_call_headers", version)


@bug("anybodys-reply", "squall_gateway.waits", "a reply goes to whoever waits")
def _(module, on):
    def version(right):
        def deliver(self, key, record):
            if on():
                for wait in self._all():
                    wait.settle(record)
            else:
                right(self, key, record)

        return deliver

    wrong(module.Waits, "deliver", version)


@bug("drop-on-reconnect", "squall_bus.writes", "what was in flight when the connection broke counts as stored")
def _(module, on):
    def one(right):
        def on_lost(self):
            if not on():
                return right(self)
            self._pending.finish(module.Published(self._lane.route.stream, 0))
            return self._lane.done(self)

        return on_lost

    def many(right):
        def on_lost(self):
            if not on():
                return right(self)
            for pending in self._group:
                pending.finish(module.Published(self._lane.route.stream, 0))
            return self._lane.done(self)

        return on_lost

    if sys.argv[0].endswith(os.path.join("squall_gateway", "__main__.py")):
        wrong(module.OneRecord, "on_lost", one)
        wrong(module.BatchWrite, "on_lost", many)


@bug("claim-anyway", "squall_gateway.dicts", "put with skip_if_exists does not look whether the key is there")
def _(module, on):
    def version(right):
        async def put_once(self, key, receipt, data):
            if not on():
                return await right(self, key, receipt, data)
            await self.bus.kv(module.DICTS).put(key, data)
            return True

        return put_once

    wrong(module.Dicts, "_put_once", version)


@bug("pop-without-revision", "squall_gateway.dicts", "a key is removed whatever its value is by now")
def _(module, on):
    def version(right):
        async def remove(self, entry, receipt):
            await (self.bus.kv(module.DICTS).delete(entry.key) if on() else right(self, entry, receipt))

        return remove

    wrong(module.Dicts, "_remove", version)


@bug("take-without-front", "squall_gateway.takes", "items are handed out, and who else has taken them is not looked at")
def _(module, on):
    def version(right):
        async def take(self, place, front, through, request, items):
            return front if on() else await right(self, place, front, through, request, items)

        return take

    wrong(module.Takes, "take", version)


@bug("tick-without-id", "squall_scheduler.scheduled_calls", "the call of a tick gets any id, not the tick's own")
def _(module, on):
    from squall.ids import new_call_id

    def version(right):
        def call_of_tick(record, tick, shards):
            return new_call_id(shards) if on() else right(record, tick, shards)

        return call_of_tick

    wrong(module, "call_of_tick", version)


# ---------------------------------------------------------------------- autoscaler and scheduler


@bug("too-many-containers", "squall_autoscaler.handlers", "max_containers is not looked at")
def _(module, on):
    def version(right):
        def decide(sample, history, situation, now):
            decision = right(sample, history, situation, now)
            return replace(decision, count=decision.count * 3) if on() else decision

        return decide

    wrong(module, "decide", version)


@bug("too-many-containers", "squall_scheduler.handlers")
def _(module, on):
    def version(right):
        def plan(pool, cluster, now):
            if on() and pool.function is not None:
                scaling = replace(pool.function.spec.scaling, max_containers=None)
                spec = replace(pool.function.spec, scaling=scaling)
                pool = replace(pool, function=replace(pool.function, spec=spec))
            return right(pool, cluster, now)

        return plan

    wrong(module, "plan", version)


if __name__ == "__main__":
    for name, about in BUGS.items():
        sys.stdout.write(f"{name:<22} {about}\n")
