"""The life of a service: ready, draining, ending; in a shared process and as one of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from tests.support.eventually import eventually

from squall_service.run import EXIT_FAILED, EXIT_NOT_DRAINED, EXIT_OK, EXIT_REFUSED, Service, ServiceContext, start

pytestmark = pytest.mark.slow

Context = ServiceContext[None]


def a_service(main, *, grace_s: float = 5.0) -> Service[None]:  # type: ignore[no-untyped-def]
    return Service(name="example", main=main, settings=None, grace_s=grace_s)


async def test_the_block_begins_when_the_service_is_ready_and_ends_when_it_has_drained() -> None:
    told: list[str] = []

    async def main(context: Context) -> None:
        told.append("starting")
        await asyncio.sleep(0.01)
        context.ready()
        await context.stopping.wait()
        await asyncio.sleep(0.01)
        told.append("drained")

    async with start(a_service(main)) as running:
        told.append("block")
    assert told == ["starting", "block", "drained"]
    assert running.drained


async def test_tasks_of_the_service_end_with_its_main_function() -> None:
    cancelled = asyncio.Event()

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def main(context: Context) -> None:
        context.start(loop())
        context.ready()
        await context.stopping.wait()

    async with start(a_service(main)):
        pass
    assert cancelled.is_set()


async def test_a_drain_that_takes_too_long_is_cancelled() -> None:
    async def main(context: Context) -> None:
        context.ready()
        await asyncio.Event().wait()

    async with start(a_service(main, grace_s=0.05)) as running:
        pass
    assert not running.drained


async def test_a_service_that_fails_to_start_raises_its_own_error() -> None:
    async def main(context: Context) -> None:
        raise ConnectionError("no bus")

    with pytest.raises(ConnectionError, match="no bus"):
        async with start(a_service(main)):
            pytest.fail("the block must not begin")


async def test_a_task_that_fails_ends_the_service_and_the_block_around_it() -> None:
    async def fail() -> None:
        raise RuntimeError("a bug")

    async def main(context: Context) -> None:
        context.ready()
        context.start(fail())
        await context.stopping.wait()

    with pytest.raises(RuntimeError, match="a bug"):
        async with start(a_service(main)):
            await asyncio.Event().wait()


async def test_the_blocks_own_error_comes_out_as_itself_after_the_drain() -> None:
    drained = False

    async def main(context: Context) -> None:
        nonlocal drained
        context.ready()
        await context.stopping.wait()
        drained = True

    with pytest.raises(KeyError):
        async with start(a_service(main)):
            raise KeyError
    assert drained


async def test_several_services_share_a_process() -> None:
    async def main(context: Context) -> None:
        context.ready()
        await context.stopping.wait()

    async with start(a_service(main)) as one, start(a_service(main)) as two:
        assert one.health.ready
        assert two.health.ready


# ---------------------------------------------------------------------- as a process


PROGRAM = """
import asyncio, sys
from squall_service.run import run
from squall_service.settings import ServiceSettings, settings_config
from squall_bus import BusUnavailable

class Settings(ServiceSettings):
    model_config = settings_config("EXAMPLE")
    mode: str = "drain"

async def serve(context):
    if context.settings.mode == "refuse":
        raise BusUnavailable("no server", url="nats://nowhere")
    if context.settings.mode == "never_ready":
        print("starting", flush=True)
        await asyncio.Event().wait()
    if context.settings.mode == "crash":
        raise ZeroDivisionError("a bug")
    context.ready()
    await context.stopping.wait()
    if context.settings.mode == "hang":
        await asyncio.Event().wait()
    print("drained", flush=True)

sys.exit(run("example", serve, Settings.load, grace_s=0.2 if "short" in sys.argv else 30))
"""


async def a_process(folder: Path, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
    program = folder / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, str(program), *arguments, stdout=pipe, stderr=pipe, env={"PATH": "/bin", **environment}
    )


async def until_ready(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while line := await process.stderr.readline():
            if json.loads(line)["event"] == "service_ready":
                return
    pytest.fail("it ended before it was ready")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_drains_at_a_signal_and_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    process = await a_process(tmp_path)
    await until_ready(process)
    process.send_signal(number)
    out, _ = await process.communicate()
    assert (process.returncode, out) == (EXIT_OK, b"drained\n")


@pytest.mark.slow
async def test_a_process_that_does_not_drain_in_time_says_so(tmp_path: Path) -> None:
    process = await a_process(tmp_path, "short", SQUALL_EXAMPLE_MODE="hang")
    await until_ready(process)
    process.terminate()
    _, errors = await process.communicate()
    assert process.returncode == EXIT_NOT_DRAINED
    assert b"drain_timed_out" in errors


@pytest.mark.slow
async def test_a_process_that_is_still_starting_ends_at_once(tmp_path: Path) -> None:
    process = await a_process(tmp_path, SQUALL_EXAMPLE_MODE="never_ready")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"starting\n"
    process.terminate()
    async with asyncio.timeout(10):
        await process.communicate()
    assert process.returncode == EXIT_OK


@pytest.mark.slow
async def test_a_second_signal_ends_the_drain(tmp_path: Path) -> None:
    process = await a_process(tmp_path, SQUALL_EXAMPLE_MODE="hang")
    await until_ready(process)
    process.terminate()
    assert process.stderr is not None
    assert b"service_stopping" in await process.stderr.readline()
    process.terminate()
    await process.communicate()
    assert process.returncode == EXIT_NOT_DRAINED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [
        ({"SQUALL_EXAMPLE_MODE": "refuse"}, EXIT_REFUSED, "bus_unavailable"),
        ({"SQUALL_EXAMPLE_MODE": "crash"}, EXIT_FAILED, "ZeroDivisionError"),
        ({"SQUALL_EXAMPLE_MOED": "x"}, EXIT_REFUSED, "SQUALL_EXAMPLE_MOED"),
        ({"SQUALL_TELEMETRY_LOG_LEVEL": "loud"}, EXIT_REFUSED, "SQUALL_TELEMETRY_LOG_LEVEL"),
    ],
)
async def test_what_stops_a_process_is_its_exit_code_and_its_last_line(
    tmp_path: Path, environment: dict[str, str], code: int, said: str
) -> None:
    process = await a_process(tmp_path, **environment)
    _, errors = await process.communicate()
    assert process.returncode == code
    assert said in errors.decode().splitlines()[-1]


async def test_events_carry_the_name_of_the_service_that_logged_them(capsys: pytest.CaptureFixture[str]) -> None:
    from squall_service.logs import configure_logging

    async def main(context: Context) -> None:
        context.ready()
        await context.stopping.wait()

    configure_logging("json")
    async with start(a_service(main)):
        await eventually(lambda: True)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["service"] for line in lines if line["event"] == "service_ready"] == ["example"]
