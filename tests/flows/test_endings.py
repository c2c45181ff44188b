"""How calls end when they do not simply succeed: retries, time-outs, cancels, expiry, a stopped app."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import Platform, eventually, process

import squall
from squall import errors
from squall.http_api.apps import PublishApp
from squall.http_api.routes import Route
from squall.spec import FunctionSpec, to_wire
from squall_bus import connect
from squall_contracts import topology
from squall_contracts.functions import SPECS, FunctionRecord

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("client")]


def function(name: str) -> squall.Function:
    return squall.Function.from_name("surface", name)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_a_function_that_fails_twice_succeeds_at_the_third_try(effects: Path) -> None:
    assert function("flaky").remote(str(effects), 2) == 3
    assert len(lines(effects)) == 3


def test_retries_end_with_the_last_exception_after_the_declared_delays(effects: Path) -> None:
    with pytest.raises(ValueError, match="never works"):
        function("always_fails").remote(str(effects))

    times = [float(line) for line in lines(effects)]
    assert len(times) == 3, "1 + 2 retries"
    first, second = (later - earlier for earlier, later in pairwise(times))
    assert 0.9 <= first <= 1.6, f"declared 1 s, waited {first:.2f} s"
    assert 1.8 <= second <= 2.8, f"declared 2 s, waited {second:.2f} s"


def test_a_timed_out_attempt_is_interrupted_and_retried(effects: Path) -> None:
    with pytest.raises(errors.FunctionTimeoutError):
        function("too_slow").remote(str(effects))

    assert lines(effects) == ["started", "left"] * 2, "1 + 1 retry"


def test_user_code_that_ignores_its_time_out_is_killed(effects: Path) -> None:
    with pytest.raises(errors.FunctionTimeoutError):
        function("stubborn").remote(str(effects))

    pid = int(lines(effects)[0])
    eventually(lambda: process(pid) is None, within_s=5, what="user code outlived its time-out")


def test_a_cancelled_queued_call_never_starts(effects: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hold = function("hold")
    running = hold.spawn(str(effects), str(gate), "first")
    eventually(lambda: lines(effects), within_s=20, what="the first never started")
    queued = [hold.spawn(str(effects), str(gate), f"queued {n}") for n in range(3)]

    for call in queued:
        call.cancel()
    gate.touch()

    assert running.get(timeout=30) == "first"
    for call in queued:
        with pytest.raises(errors.CallCancelledError):
            call.get(timeout=10)
    assert lines(effects) == ["started first", "finished first"]


def test_a_cancelled_running_call_is_interrupted(effects: Path, tmp_path: Path) -> None:
    call = function("hold").spawn(str(effects), str(tmp_path / "never"), "x")
    eventually(lambda: lines(effects), within_s=20, what="it never started")

    call.cancel()

    with pytest.raises(errors.CallCancelledError):
        call.get(timeout=10)
    # Its only container is free again.
    gate = tmp_path / "gate"
    gate.touch()
    assert function("hold").remote(str(effects), str(gate), "next") == "next"
    assert lines(effects) == ["started x", "started next", "finished next"]


def test_a_map_that_nobody_reads_any_more_is_cancelled(effects: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    calls = ((str(effects), str(gate), n) for n in range(50))
    results = function("hold").starmap(calls, order_outputs=False)
    stream: Any = iter(results)
    gate.touch()
    next(stream)
    gate.unlink()

    stream.close()

    gate.touch()
    assert function("hold").remote(str(effects), str(gate), "after") == "after"
    started = [line for line in lines(effects) if line.startswith("started")]
    assert len(started) < 50, "inputs of a map without a reader still ran"


def test_an_ended_call_cannot_be_cancelled_any_more() -> None:
    call = function("square").spawn(4)
    assert call.get(timeout=30) == 16

    call.cancel()

    assert call.get(timeout=5) == 16


def test_calls_that_wait_past_their_limit_expire_and_never_start(
    client: Platform, effects: Path, tmp_path: Path
) -> None:
    deploy_with_queue_limit(client, "expiring", limit_s=1.0)
    hold = squall.Function.from_name("expiring", "hold")
    gate = tmp_path / "gate"
    running = started(hold, effects, gate)
    waiting = [hold.spawn(str(effects), str(gate), n) for n in range(12)]

    # The ones that an agent has leased ahead are looked at when a slot is free; the others at once.
    eventually(lambda: any(has_expired(call) for call in waiting), what="none expired in time")
    gate.touch()

    assert running.get(timeout=30) == "first", "the limit is for waiting, not for running"
    eventually(lambda: all(has_expired(call) for call in waiting), what="some never expired")
    assert lines(effects) == ["started first", "finished first"]


def started(hold: squall.Function, effects: Path, gate: Path) -> squall.FunctionCall:
    """A call that runs. On a slow machine one may expire while its container starts; the next one finds it there."""
    while True:
        call = hold.spawn(str(effects), str(gate), "first")
        eventually(lambda: lines(effects) or has_expired(call), within_s=20, what="the first never started")  # noqa: B023
        if lines(effects):
            return call


def has_expired(call: squall.FunctionCall) -> bool:
    try:
        call.get(timeout=0)
    except errors.CallExpiredError:
        return True
    except TimeoutError:
        return False
    raise AssertionError("it ran")


def deploy_with_queue_limit(platform: Platform, name: str, limit_s: float) -> None:
    """Programs cannot choose the limit yet; the API can: publish `hold` again with another one."""
    spec = replace(asyncio.run(spec_of(platform, "hold")), queue_limit_s=limit_s)
    request = urllib.request.Request(
        platform.url + Route.APPS,
        data=json.dumps(to_wire(PublishApp(name=name, functions=(spec,), mode="deployed"))).encode(),
        headers={"Authorization": f"Bearer {platform.token}", "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


async def spec_of(platform: Platform, name: str) -> FunctionSpec:
    """What was deployed under that name in `surface`."""
    async with connect(platform.bus_settings(), topology.build()) as bus:
        records = [FunctionRecord.decode(entry.value) for entry in await bus.kv(SPECS).entries(prefix="fu-")]
    return next(record.spec for record in records if record.spec.name == name and record.app_name == "surface")


def test_stopping_an_app_ends_its_calls_and_its_containers(client: Platform, effects: Path, tmp_path: Path) -> None:
    program = tmp_path / "stopped.py"
    text = (Path(__file__).parent / "programs" / "surface.py").read_text().replace('App("surface")', 'App("stopped")')
    program.write_text(text)
    client.squall("deploy", program)
    hold = squall.Function.from_name("stopped", "hold")
    calls = [hold.spawn(str(effects), str(tmp_path / "never"), n) for n in range(3)]
    eventually(lambda: lines(effects), within_s=20, what="it never started")

    client.squall("app", "stop", "stopped", "--yes")

    for call in calls:
        with pytest.raises(errors.CallCancelledError):
            call.get(timeout=20)
