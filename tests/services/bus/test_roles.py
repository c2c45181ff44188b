"""Roles on a real server with the generated users: what each may not do is refused, loudly and at once.

That what they must do is allowed is shown by the flow tests, whose platforms have the same users.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall_bus import Bus, BusForbidden, BusSettings, ConsumerSpec, Message, Record, TopologyMissing, connect
from squall_bus.js import api
from squall_contracts import roles, subjects, topology, users

NODES = ("n1", "n2")
LAYOUT = topology.build("local", 2)
CALL = "fc-0123456789abcdefghjkmnpq00"
POOL = "po-1"


def settings(server: NatsServer, user: users.User) -> BusSettings:
    prefix = roles.inbox_prefix(user.role, user.node)
    return BusSettings(url=server.url, user=user.name, password=f"of-{user.name}", shards=2, inbox_prefix=prefix)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """With every user, every stream, one pool's consumer, and one call with its result."""
    rights = users.authorization("local", 2, NODES, lambda user: users.quoted(f"of-{user.name}"))
    async with NatsServer(tmp_path, extra=rights) as server:
        async with as_user(server, roles.TOPOLOGY) as bus:
            await bus.ensure_topology()
        async with as_user(server, roles.GATEWAY) as bus:
            spec = ConsumerSpec(name=POOL, filter_subject=subjects.calls_of_pool("local", 0, POOL))
            await bus.ensure_consumer(subjects.work_stream("local", 0), spec)
            await bus.publish(subjects.call("local", POOL, CALL, 0), b"call")
        yield server


@asynccontextmanager
async def as_user(server: NatsServer, role: str, node: str = "") -> AsyncIterator[Bus]:
    async with connect(settings(server, users.User(roles.user_name(role, node), role, node)), LAYOUT) as bus:
        yield bus


SERVICES = [(role, "") for role in roles.SERVICES] + [(roles.AGENT, "n1")]
JOURNAL, WORK, RESULTS = (
    make("local", 0) for make in (subjects.journal_stream, subjects.work_stream, subjects.results_stream)
)

# Subjects to publish to that no service may, whichever it is.
NOBODY = [
    *(f"$JS.API.STREAM.{verb}.{stream}" for verb in ("DELETE", "UPDATE") for stream in (JOURNAL, RESULTS, "KV_tokens")),
    *(f"$JS.API.STREAM.PURGE.{stream}" for stream in (JOURNAL, RESULTS, "KV_specs", "KV_containers")),
    f"$JS.API.STREAM.MSG.DELETE.{RESULTS}",
    f"$JS.API.STREAM.SNAPSHOT.{JOURNAL}",
    f"$JS.API.STREAM.CREATE.{JOURNAL}",
    "$JS.API.CONSUMER.NAMES.KV_specs",
    "$JS.API.CONSUMER.LIST.KV_containers",
    "$JS.API.CONSUMER.CREATE.KV_secrets.r1.$KV.secrets.>",
    "$JS.API.STREAM.PURGE.KV_secrets",
    "$SYS.REQ.SERVER.PING",
    "arrived.local.00.po-1.x.0",
    "done.local.00.ws.x.0",
    "_INBOX_scheduler.0123.r.1",
    "_INBOX_gateway.0123.r.1",
    "_INBOX_agent.n2.0123.r.1",
]
RESULT = subjects.result("local", "ws", CALL, 0)
DENIED = {
    roles.GATEWAY: f"""
        $KV.containers.po-1.0 $KV.desired.po-1 $KV.leases.autoscaler $KV.nodes.n1 $KV.tokens.containers.n1.x
        attempts.local.00.ws.x.0 requeue.local.00.po-1.x.0 stats.local.n1
        $JS.API.CONSUMER.DELETE.{WORK}.{POOL} $JS.API.CONSUMER.MSG.NEXT.{WORK}.{POOL}
        $JS.ACK.{WORK}.{POOL}.1.1.1.1.1""",
    roles.SCHEDULER: f"""
        cancel.local.po-1 command.local.n1 fire.local.sc-1 $KV.apps.ap-1
        $KV.secrets.x $JS.API.DIRECT.GET.KV_secrets $JS.API.STREAM.MSG.GET.KV_secrets
        $KV.desired.po-1 $KV.specs.fu-1 $KV.tokens.x $KV.leases.autoscaler
        $JS.API.DIRECT.GET.KV_tokens $JS.API.STREAM.CREATE.KV_specs
        $JS.API.CONSUMER.DELETE.{WORK}.{POOL} $JS.API.CONSUMER.MSG.NEXT.{WORK}.{POOL}""",
    roles.AUTOSCALER: f"""
        {RESULT} calls.local.00.po-1.x.0 requeue.local.00.po-1.x.0 _INBOX_gateway.0123.i.1.x
        $KV.secrets.x $JS.API.DIRECT.GET.KV_secrets $JS.API.STREAM.MSG.GET.KV_secrets
        $KV.containers.po-1.0 $KV.specs.fu-1 $KV.tokens.x
        $JS.API.DIRECT.GET.KV_tokens $JS.API.STREAM.PURGE.{WORK} $JS.API.CONSUMER.MSG.NEXT.{WORK}.{POOL}
        $JS.API.CONSUMER.CREATE.{WORK}.{POOL}.calls.local.00.{POOL}.>""",
    roles.BUILDER: f"""
        {RESULT} calls.local.00.po-1.x.0 builds.local.im-1 logs.local.00.app.po-1.x prune.local.builders
        $KV.specs.fu-1 $KV.tokens.x $KV.containers.po-1.0
        $KV.secrets.x $JS.API.DIRECT.GET.KV_secrets
        $JS.API.DIRECT.GET.{JOURNAL} $JS.API.DIRECT.GET.{RESULTS} $JS.API.DIRECT.GET.KV_tokens""",
    roles.AGENT: f"""
        calls.local.00.po-1.x.0 requeue.local.00.po-1.x.0 cancel.local.po-1 stats.local.n2
        command.local.n1
        $KV.nodes.n2 $KV.tokens.x $KV.tokens.containers.n2.x $KV.specs.fu-1 $KV.desired.po-1 $KV.leases.reconciler-00
        $KV.secrets.x $JS.API.DIRECT.GET.KV_secrets
        $JS.API.DIRECT.GET.KV_tokens $JS.API.CONSUMER.CREATE.KV_tokens.r1.$KV.tokens.>
        $JS.API.DIRECT.GET.{JOURNAL} $JS.API.DIRECT.GET.{WORK}
        $JS.API.CONSUMER.CREATE.{WORK}.{POOL}.calls.local.00.{POOL}.> $JS.API.CONSUMER.DELETE.{WORK}.{POOL}
        $JS.API.STREAM.PURGE.{WORK} $JS.API.STREAM.CREATE.NEW""",
}
DEAF = [">", "$JS.>", "calls.local.>", "_INBOX_admin.>", "_INBOX_topology.>", "_INBOX.>", "$KV.>", "$KV.tokens.*"]
DEAF_TO: dict[str, list[str]] = {
    roles.GATEWAY: ["arrived.local.>", "_INBOX_scheduler.>", "_INBOX_agent.n1.>"],
    roles.SCHEDULER: ["_INBOX_gateway.>", "items.local.*"],
    roles.AUTOSCALER: ["done.local.>", "_INBOX_gateway.>", "_INBOX_scheduler.>"],
    roles.BUILDER: ["done.local.>", "arrived.local.>", "stats.local.*", "_INBOX_gateway.>"],
    roles.AGENT: [
        "done.local.>",
        "arrived.local.>",
        "items.local.*",
        "stats.local.*",
        "command.local.n2",
        "_INBOX_gateway.>",
        "_INBOX_agent.>",
        "_INBOX_agent.n2.>",
    ],
}


@pytest.mark.parametrize(("role", "node"), SERVICES)
async def test_a_role_may_not_publish_to_what_is_not_its_business(server: NatsServer, role: str, node: str) -> None:
    async with as_user(server, role, node) as bus:
        allowed = []
        for subject in [*NOBODY, *DENIED[role].split()]:
            if subject.startswith(f"{roles.inbox_prefix(role, node)}."):
                continue
            before = bus.stats.denied
            bus.send(subject, b"")
            await bus.flush()
            if bus.stats.denied == before:
                allowed.append(subject)
        assert allowed == []


@pytest.mark.parametrize(("role", "node"), SERVICES)
async def test_a_role_may_not_listen_to_what_is_not_its_business(server: NatsServer, role: str, node: str) -> None:
    async with as_user(server, role, node) as bus:
        for subject in [*DEAF, *DEAF_TO[role]]:
            with pytest.raises(BusForbidden, match="may not subscribe to"):
                await bus.subscribe(subject, lambda _: None)


async def test_what_is_denied_fails_at_once_and_says_who_may_not_do_what(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with as_user(server, roles.AGENT, "n1") as bus, asyncio.timeout(3):
        publish = bus.publish(subjects.call("local", POOL, CALL, 1), b"", deadline_s=60)
        consumer = bus.ensure_consumer(
            WORK, ConsumerSpec(name=POOL, filter_subject=subjects.calls_of_pool("local", 0, POOL))
        )
        for denied in (publish, consumer, bus.kv("tokens").entries(), bus.kv("tokens").put("x", b"")):
            with pytest.raises(BusForbidden) as caught:
                await denied
            assert caught.value.data["user"] == "agent-n1"
        outcomes = await bus.publish_batch([_record(index) for index in range(2, 40)], deadline_s=60)
        assert all(isinstance(outcome, BusForbidden) for outcome in outcomes)
        bus.publish_soon(subjects.build("local", "im-1"), b"")
        await eventually(lambda: bus.stats.soon_dropped == 1)
        assert bus.stats.reconnects == 0
    # A thief's own client logs nothing of ours: the server's log is where his tries stand.
    assert 'user:agent-n1" - Publish Violation - Subject "$KV.tokens.x"' in server.log
    (first, *_) = [record for record in caplog.records if record.message == "bus_forbidden"]
    assert first.levelno == logging.ERROR
    assert {"user", "denied", "subject", "fix"} <= set(first.fields)  # type: ignore[attr-defined]


def _record(index: int) -> Record:
    return Record(subjects.call("local", POOL, CALL, index), b"")


async def test_replies_reach_a_gateways_public_inbox_and_no_other_of_its_inboxes(server: NatsServer) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(as_user(server, roles.GATEWAY))
        agent = await stack.enter_async_context(as_user(server, roles.AGENT, "n1"))
        got: list[Message] = []
        inbox = gateway.new_inbox()
        await gateway.subscribe(f"{inbox}.>", got.append)
        agent.send(f"{inbox}.x", b"result")
        await eventually(lambda: len(got) == 1)
        forged = gateway._link.replies.prefix + ".1"
        agent.send(forged, b"{}")
        await agent.flush()
        assert agent.stats.denied == 1


async def test_topology_can_make_streams_and_not_remove_them(server: NatsServer) -> None:
    async with as_user(server, roles.TOPOLOGY) as bus:
        await bus.ensure_topology()
        with pytest.raises(BusForbidden):
            await api(bus._link, f"STREAM.DELETE.{JOURNAL}")
        with pytest.raises(BusForbidden):
            await bus.publish(subjects.call("local", POOL, CALL, 1), b"")


async def test_the_scheduler_writes_and_reads_canaries_and_nobody_else_may(server: NatsServer) -> None:
    async with as_user(server, roles.SCHEDULER) as scheduler, as_user(server, roles.AGENT, "n1") as agent:
        for stream, subject in [(s.name, s.canary) for s in LAYOUT.streams] + [("KV_tokens", LAYOUT.buckets[6].canary)]:
            await scheduler.publish(subject, b"song", ttl_s=20)
            stored = await scheduler.get_last(stream, subject)
            assert stored is not None
            assert stored.data == b"song"
            with pytest.raises(BusForbidden):
                await agent.publish(subject, b"")
        with pytest.raises(BusForbidden):
            await scheduler.get_last("KV_tokens", "$KV.tokens.x")


async def test_an_agent_reads_a_claim_again_that_the_scheduler_has_changed(server: NatsServer) -> None:
    async with as_user(server, roles.SCHEDULER, "") as scheduler, as_user(server, roles.AGENT, "n1") as agent:
        revision = await scheduler.kv("containers").create("po-1.0", b"proposed")
        await scheduler.kv("containers").update("po-1.0", b"draining", revision)
        entry = await agent.kv("containers").get("po-1.0")
        assert entry is not None
        assert entry.value == b"draining"


async def test_the_scheduler_makes_a_lost_queue_again(server: NatsServer) -> None:
    async with as_user(server, roles.ADMIN) as admin, as_user(server, roles.SCHEDULER) as scheduler:
        await api(admin._link, f"STREAM.DELETE.{subjects.work_stream('local', 1)}")
        await scheduler.ensure_stream(subjects.work_stream("local", 1))
        await scheduler.await_topology()


async def test_a_service_whose_streams_are_missing_says_what_to_do(tmp_path: Path) -> None:
    async with NatsServer(tmp_path) as server, connect(BusSettings(url=server.url, shards=2), LAYOUT) as bus:
        with pytest.raises(TopologyMissing, match="streams are missing") as caught:
            await bus.await_topology(timeout_s=0.2)
        assert "squall-bus topology" in caught.value.hint


async def test_what_a_server_forgot_before_anybody_was_connected_the_scheduler_makes_again(server: NatsServer) -> None:
    """Machines that start after a power cut: services find a server without its streams in memory, and no reconnect."""
    await server.restart()
    async with as_user(server, roles.AGENT, "n1") as agent, as_user(server, roles.SCHEDULER) as scheduler:
        with pytest.raises(TopologyMissing, match="KV_health, KV_nodes"):
            await agent.await_topology(0)
        scheduler.keep_memory_streams()
        await scheduler.await_topology()
        await agent.await_topology()
