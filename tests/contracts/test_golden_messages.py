"""Every message of today still reads what was written when its golden file was made, and writes the same.

A golden file is `<type>.v<version>.json` with the fields as JSON (bytes as {"b64": ...}). Never edit one: a change
that needs it is a new version of the message. Running this file as a script
writes files for new messages only.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

import squall_contracts
from squall.spec import (
    CodeRef,
    FunctionSpec,
    GpuRequest,
    ImageSpec,
    ImageStep,
    MethodSpec,
    ParameterSpec,
    Resources,
    ScheduleSpec,
)
from squall_contracts import (
    builds,
    calls,
    environments,
    functions,
    health,
    letters,
    logs,
    nodes,
    objects,
    scaling,
    schedules,
    secrets,
    spans,
    usage,
    volumes,
    webhooks,
)
from squall_contracts.envelope import BadMessage, HotMessage, Message

GOLDEN = Path(__file__).parent / "golden"
CALL = "fc-01m806gy9p80mq67vgcdfb1x01"
SPEC = FunctionSpec(
    name="Model",
    code=CodeRef(bundle_sha256="ab" * 32, module="app", qualname="Model", bundle_bytes=7),
    image=ImageSpec(steps=(ImageStep("pip_install", {"packages": ["numpy"]}),)),
    methods=(MethodSpec("predict"), MethodSpec("stream", is_generator=True, is_async=True)),
    is_class=True,
    parameters=(ParameterSpec("size", "str", True, "small"),),
    resources=Resources(gpus=(GpuRequest("H100", 2, True),)),
    env={"A": "1"},
)
MESSAGES: tuple[Message, ...] = (
    calls.CallRequested(
        call=CALL,
        index=3,
        pool="po-1",
        function="fu-1",
        workspace="ws",
        app="ap-1",
        kind="map",
        accepted_at=1.5,
        deadline=99.5,
        method="predict",
        payload=b"\x00\xff",
        blob=None,
        reply_to="_INBOX_gw.1",
        parent=CALL,
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        spans=[["gateway.accept", "", "gateway", 10, 5, {"k": 1}]],
    ),
    calls.CallResult(
        call=CALL,
        index=3,
        workspace="ws",
        outcome="failed",
        attempt="1-abc",
        payload=b"p",
        error={"kind": "user", "type": "ValueError"},
        node="node-a",
        container="ta-1",
        started_at=1.0,
        ended_at=2.0,
        function="fu-1",
        pool="po-1",
    ),
    calls.AttemptFailed(
        call=CALL,
        index=3,
        attempt="1-abc",
        kind="user",
        user_failures=1,
        infra_failures=0,
        failed_at=1.0,
        retry_at=2.0,
        reason="ValueError: x",
        history=["1-abc user ValueError: x"],
    ),
    calls.CallEvent(call=CALL, index=3, event="started", at=1.0, attempt="1-abc", node="node-a", container="ta-1"),
    calls.CancelRequested(call=CALL, pool="po-1", index=None, terminate_containers=True),
    calls.ItemYielded(call=CALL, attempt="1-abc", seq=4, payload=b"item"),
    calls.ItemsTaken(call=CALL, attempt="1-abc", taken=4),
    calls.KeyedCall(call=CALL, payload_hash="ab" * 32, at=1.5),
    letters.DeadLetter(
        call=CALL,
        index=3,
        workspace="ws",
        app="ap-1",
        function="fu-1",
        pool="po-1",
        outcome="failed",
        failed_at=2.5,
        request=b"accepted",
    ),
    letters.Redriven(call=CALL, index=3, workspace="ws", into=CALL, at=3.5),
    functions.AppRecord(
        app_id="ap-1",
        name="demo",
        workspace="ws",
        environment="main",
        state="deployed",
        version=2,
        functions={"f": "fu-1"},
        created_at=1.0,
        updated_at=2.0,
        history=(functions.DeployedVersion(1, 1.0, {"f": "fu-0"}),),
    ),
    functions.FunctionRecord(
        function_id="fu-1",
        app_id="ap-1",
        app_name="demo",
        workspace="ws",
        environment="main",
        version=2,
        ephemeral=False,
        spec=SPEC,
        created_at=1.0,
    ),
    functions.PoolRecord(
        pool="po-1", function_id="fu-1", app_id="ap-1", workspace="ws", parameters="e30=", created_at=1.0
    ),
    volumes.VolumeHead(
        volume_id="vo-1", version=3, manifest="ab:12", files=2, size=99, committed_at=1.5, recent=[["r1", 3]]
    ),
    volumes.CondemnedBlocks(blocks=["ab", "cd"]),
    objects.ObjectRecord(
        object_id="di-1", kind="dicts", name="state", workspace="ws", environment="main", created_at=1.0
    ),
    objects.DictEntry(key=b"k\xff", value=b"v", blob="ab:3", request="r1"),
    objects.QueueItem(value=b"v", blob="ab:3"),
    objects.QueueFront(through=7),
    objects.QueueTake(values=[b"v", b""], blobs=[None, "ab:3"]),
    schedules.ScheduleRecord(
        schedule_id="sc-1",
        app_id="ap-1",
        app_name="demo",
        workspace="ws",
        environment="main",
        function="f",
        spec=ScheduleSpec(cron="0 6 * * *", timezone="Europe/Berlin"),
        generation="abc",
        since=1.0,
        handled=2.0,
        next_tick=3.0,
        paused=True,
        called=4,
        missed=5,
        recent=[[2.0, 2.1, CALL]],
    ),
    schedules.Tick(schedule_id="sc-1", generation="abc", tick=3.0),
    environments.EnvironmentRecord(name="staging", workspace="ws", created_at=1.5),
    webhooks.WebhookUser(workspace="ws", since=1.5),
    webhooks.WebhookDelivery(
        call=CALL,
        index=3,
        workspace="ws",
        url="https://example.com/ends?run=17",
        event="call.failed",
        app="ap-1",
        function="Model.predict",
        created_at=1.5,
        state="pending",
        body=b'{"type":"call.failed"}',
        tries=2,
        next_at=99.5,
        recent=[[2.0, 0.5, "answered 503"]],
    ),
    webhooks.WebhookLetter(call=CALL, index=3, workspace="ws", app="ap-1", at=2.5),
    secrets.SecretRecord(
        secret_id="st-1",
        workspace="ws",
        environment="main",
        name="api",
        keys=("API_KEY",),
        sealed=b"\x01\x00\xff",
        created_at=1.0,
        updated_at=2.0,
    ),
    functions.TokenRecord(workspace="ws", name="laptop", scope="workspace", created_at=1.0),
    nodes.NodeFact(
        node="node-a",
        region="local",
        at=1.0,
        cpu=2.0,
        memory_mib=1024,
        gpus=(nodes.GpuFact("GPU-1", "H100", 81559),),
    ),
    nodes.ContainerClaim(
        pool="po-1",
        ordinal=0,
        container="ta-1",
        node="node-a",
        function_id="fu-1",
        app_id="ap-1",
        workspace="ws",
        state="ready",
        created_at=1.0,
        updated_at=2.0,
        spans=[["scheduler.place", "", "scheduler", 10, 5, {}]],
    ),
    nodes.ContainerStats(
        node="node-a", at=1.0, containers=[["ta-1", "po-1", 1, 4, 0.0, "ready"]], prefetched={"po-1": 2}
    ),
    nodes.NodeCommand("execute", "_INBOX_gw.1", container="ta-1", graceful=True, words=["ls", "-l"], timeout_s=5.0),
    nodes.NodeAnswer(node="node-a", last=False, containers=2, stream="stdout", data=b"hi\n", status=3),
    scaling.Desired(pool="po-1", count=3, reason="backlog 3", decision="de-1", decided_at=1.0, inputs={"backlog": 3}),
    scaling.WebDemand(pool="po-1", gateway="gw-1", held=2, running=3),
    scaling.Verdict(pool="po-1", at=1.0, missing=1, rejected={"node-a": "has no H100"}, message="no node offers H100"),
    builds.BuildImage(image="im-1", spec=SPEC.image, requested_at=1.0),
    builds.PruneImages(reply_to="_INBOX_gw.1", step="remove", images=("im-1",), since=1.0),
    builds.PruneAnswer(
        builder="bu-1",
        done=False,
        withdrawn=("im-1",),
        images=1,
        layers=2,
        bytes=3,
        kept_bytes=4,
        in_registry=1,
        error="disk",
    ),
    builds.ImageNameRecord(name="a:latest", image="im-1", workspace="ws", environment="main", updated_at=1.0),
    builds.ImageRecord(image="im-1", state="ready", updated_at=1.0, lock=("numpy==2.0",), python="3.11"),
    logs.LogLines(
        app="ap-1",
        pool="po-1",
        function="f",
        container="ta-1",
        call=CALL,
        index=0,
        lines=[[1.0, "stdout", "hi\r\n"]],
    ),
    health.StreamsChecked(
        at=1.5,
        streams=7,
        slowest="USAGE_local",
        slowest_ms=3.5,
        failing={"RESULTS_local_00": "bus_unavailable: no answer"},
    ),
    usage.UsageIntervals(
        function="fu-1",
        app="ap-1",
        workspace="ws",
        node="node-a",
        cpu=0.5,
        memory_mib=128,
        gpus=["GPU-1"],
        intervals=[[CALL, 3, "1-abc", "ta-1", 1.0, 2.0, "succeeded"]],
    ),
    spans.SpanBatch(
        trace_id="a" * 32,
        parent_id="b" * 16,
        call=CALL,
        index=0,
        attempt="1-abc",
        rows=[["attempt", "", "gpu-agent", 1, 2, {}]],
    ),
)


def to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    return [to_json(v) for v in value] if isinstance(value, list) else value


def from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["b64"]) if set(value) == {"b64"} else {k: from_json(v) for k, v in value.items()}
    return [from_json(v) for v in value] if isinstance(value, list) else value


def golden_file(message: Message) -> Path:
    return GOLDEN / f"{message.TYPE}.v{message.VERSION}.json"


def by_type(message: Message) -> str:
    return message.TYPE


@pytest.mark.parametrize("message", MESSAGES, ids=by_type)
def test_message_written_by_an_earlier_release_is_understood(message: Message) -> None:
    wire = msgpack.packb(from_json(json.loads(golden_file(message).read_text())))
    assert type(message).decode(wire) == message


@pytest.mark.parametrize("message", MESSAGES, ids=by_type)
def test_fields_of_the_golden_file_are_still_written(message: Message) -> None:
    golden = from_json(json.loads(golden_file(message).read_text()))
    written = msgpack.unpackb(message.encode())
    assert kept(written, golden) == golden


def kept(written: Any, golden: Any) -> Any:
    """What is written now, without the fields that came later: contracts grow, also nested."""
    if isinstance(golden, dict) and isinstance(written, dict):
        return {key: kept(written.get(key), golden[key]) for key in golden}
    if isinstance(golden, list) and isinstance(written, list) and len(golden) == len(written):
        return [kept(one, other) for one, other in zip(written, golden, strict=True)]
    return written


@pytest.mark.parametrize("message", MESSAGES, ids=by_type)
def test_unknown_fields_of_a_newer_writer_are_ignored(message: Message) -> None:
    body = msgpack.unpackb(message.encode())
    body["field_of_the_future"] = {"nested": [1]}
    assert type(message).decode(msgpack.packb(body)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=by_type)
def test_a_newer_version_or_another_type_is_refused(message: Message) -> None:
    body = msgpack.unpackb(message.encode())
    with pytest.raises(BadMessage, match="newer"):
        type(message).decode(msgpack.packb({**body, "v": message.VERSION + 1}))
    with pytest.raises(BadMessage, match="expected"):
        type(message).decode(msgpack.packb({**body, "t": "something_else"}))
    with pytest.raises(BadMessage):
        type(message).decode(b"\xc1garbage")


def test_every_message_class_has_a_golden_file() -> None:
    assert squall_contracts.__doc__
    pending, found = [Message], set()
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        found |= {cls.TYPE} - {""}
    nested = {"deployed_version", "gpu_fact"}  # only inside other messages
    assert found - nested == {message.TYPE for message in MESSAGES}


def test_every_field_of_a_message_added_since_has_a_default() -> None:
    for message in MESSAGES:
        golden = json.loads(golden_file(message).read_text())
        for field in dataclasses.fields(message):
            has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
            assert field.name in golden or has_default, f"{message.TYPE}.{field.name}"


def test_hot_messages_are_flat() -> None:
    for message in MESSAGES:
        if isinstance(message, HotMessage):
            assert not any(dataclasses.is_dataclass(getattr(message, f.name)) for f in dataclasses.fields(message))


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in MESSAGES:
        if not golden_file(each).exists():
            golden_file(each).write_text(
                json.dumps(to_json(msgpack.unpackb(each.encode())), indent=1, sort_keys=True) + "\n"
            )
