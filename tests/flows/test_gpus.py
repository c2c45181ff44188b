"""GPUs from driver to container: an agent with eight H100s (a C stub of NVIDIA's library) and one without any."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flows.conftest import PROGRAMS, nothing_was_forbidden, use
from tests.support.nvml import FakeMachine, h100s
from tests.support.platform import SQUALL, Platform, eventually

import squall
from squall_bus import Bus, connect
from squall_contracts import topology
from squall_contracts.nodes import CONTAINERS, ClaimState, ContainerClaim
from squall_contracts.scaling import VERDICTS, Verdict

pytestmark = pytest.mark.slow

HOLDING = (ClaimState.PROPOSED, ClaimState.STARTING, ClaimState.READY, ClaimState.DRAINING)
PLACEMENTS = 50


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> FakeMachine:
    machine = FakeMachine(tmp_path_factory.mktemp("nvml"))
    machine.add(*h100s(8))
    return machine


@pytest.fixture(scope="module")
def platform(machine: FakeMachine) -> Iterator[Platform]:
    """The first agent offers the machine's devices, the second one none."""
    environment = {**machine.environment, "SQUALL_GPU_AGENT_GPU_READ_S": "0.1"}
    with Platform(processes=True, agents=2, environment=environment) as platform:
        (locks := platform.folder / "locks").mkdir()
        child = platform.popen(SQUALL, "deploy", PROGRAMS / "gpus.py", LOCKS=str(locks))
        said = child.communicate(timeout=60)
        assert child.returncode == 0, said
        yield platform
        nothing_was_forbidden(platform)


@pytest.fixture
def client(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    use(platform, monkeypatch)
    return platform


def function(name: str) -> squall.Function:
    return squall.Function.from_name("gpus", name)


def verdicts(platform: Platform) -> list[str]:
    """Why containers wait."""

    async def read() -> list[str]:
        async with connect(platform.bus_settings(), topology.build()) as bus:
            return [Verdict.decode(entry.value).message for entry in await bus.kv(VERDICTS).entries()]

    return asyncio.run(read())


def test_eight_devices_are_seen_and_a_container_without_gpus_sees_none(client: Platform, machine: FakeMachine) -> None:
    first, second = json.loads(client.squall("node", "list", "--json").stdout)
    assert first["gpus"] == ["H100"] * 8
    assert [gpu["uuid"] for gpu in first["devices"]] == list(machine.gpus)
    assert {(gpu["name"], gpu["memory_mib"], gpu["simulated"]) for gpu in first["devices"]} == {
        ("NVIDIA H100 80GB HBM3", 81_559, False)
    }
    assert (second["gpus"], second["gpu_note"]) == ([], "it offers none")
    assert function("without").remote() == ("", "void")


async def test_no_device_is_ever_given_twice(client: Platform, machine: FakeMachine) -> None:
    singles, triples = squall.Cls.from_name("gpus", "Single"), squall.Cls.from_name("gpus", "Triple")

    def place() -> list[list[str]]:
        models = [(triples if n % 5 == 0 else singles)(key=n) for n in range(PLACEMENTS)]
        return squall.FunctionCall.gather(*[model.use.spawn(0.05) for model in models])

    async with connect(client.bus_settings(), topology.build()) as bus, asyncio.TaskGroup() as group:
        watching = group.create_task(watch_claims(bus))
        given = await asyncio.to_thread(place)
        watching.cancel()
    doubles, most = watching.result()
    # Of the containers each would have failed at its lock.
    assert [len(uuids) for uuids in given] == [3 if n % 5 == 0 else 1 for n in range(PLACEMENTS)]
    assert {uuid for uuids in given for uuid in uuids} <= set(machine.gpus)
    assert doubles == []
    assert most >= 7, "the devices were never nearly all in use: this proves little"


async def watch_claims(bus: Bus) -> tuple[list[str], int]:
    """Until cancelled: every device that two claims had at one moment, and the most devices that were given at once."""
    claims: dict[str, ContainerClaim] = {}
    doubles, most = list[str](), 0
    try:
        async with bus.kv(CONTAINERS).watch() as changes:
            async for change in changes:
                if change.synced:
                    continue
                claims.pop(change.key, None)
                if change.value is not None:
                    claims[change.key] = ContainerClaim.decode(change.value)
                given = [uuid for claim in claims.values() if claim.state in HOLDING for uuid in claim.gpus]
                doubles += sorted({uuid for uuid in given if given.count(uuid) > 1})
                most = max(most, len(given))
    except asyncio.CancelledError:
        pass
    return doubles, most


def test_the_calls_of_a_lost_device_run_on_another(client: Platform, machine: FakeMachine, tmp_path: Path) -> None:
    effects, gate = tmp_path / "effects", tmp_path / "gate"
    effects.touch()
    call = function("hold").spawn(str(effects), str(gate))
    eventually(effects.read_text, within_s=30, what="it did not start")
    lost = effects.read_text().strip()

    machine.change(lost, state="lost")
    try:
        eventually(lambda: len(effects.read_text().split()) == 2, within_s=30, what="it did not start again")
        other = effects.read_text().split()[1]
        gate.touch()

        assert call.get(timeout=30) == [other]  # no retries were declared: the loss was not the function's failure
        assert other != lost
        listed = client.squall("node", "list").stdout
        assert f"{lost} (H100) is lost: the driver does not find it any more" in listed
        waiting = function("all_of_them").spawn()
        reason = f"can give 7 of 8 H100: {lost} is lost"
        eventually(lambda: any(reason in each for each in verdicts(client)), within_s=30, what=reason)
    finally:
        machine.change(lost, state="ok")
    assert sorted(waiting.get(timeout=60)) == sorted(machine.gpus)


def test_an_impossible_request_says_what_each_node_lacks(client: Platform) -> None:
    call = function("elsewhere").spawn()
    expected = "no node offers L4: local-0 has no L4 (but 8 H100); local-1 has no GPU"
    eventually(lambda: expected in verdicts(client), within_s=30, what=expected)
    call.cancel()
