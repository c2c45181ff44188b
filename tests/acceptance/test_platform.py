"""The issue's acceptance list through the real CLI: quickstart, deploy and restart, tests, the two forms."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest
from tests.acceptance.stranger import Stranger
from tests.support.platform import belonging_to, eventually, process

DEPLOYED = """\
import os
import time

import squall

app = squall.App("kept")


@app.function()
def double(x):
    return 2 * x


@app.function(timeout=120)
def hold(started, gate, value):
    open(started, "a").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return value
"""
CALL_DOUBLE = 'import squall; print(squall.Function.from_name("kept", "double").remote(21))'


def test_the_quickstart_runs_and_leaves_nothing(stranger: Stranger) -> None:
    answer = stranger.squall("run", stranger.copy / "examples" / "quickstart.py").must_succeed()

    assert "49" in answer.out
    assert "285" in answer.out, "the sum of the squares below 10"
    stranger.left_nothing()


def test_the_program_of_the_readme_runs(stranger: Stranger) -> None:
    readme = (stranger.copy / "README.md").read_text()
    program = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert program
    stranger.has("hello.py", program[1])

    answer = stranger.squall("run", "hello.py", "--n", "4").must_succeed()

    assert answer.out.split() == ["49", "14"]
    stranger.left_nothing()


def test_the_quickstart_page_works_as_written(stranger: Stranger) -> None:
    page = (stranger.copy / "docs" / "quickstart.md").read_text()
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert program
    stranger.has("hello.py", program[1])

    answer = stranger.squall("run", "hello.py", "--count", "3").must_succeed()

    assert [line for line in answer.out.splitlines() if "thousand" in line or "million" in line]
    assert "working on 1000" in answer.out + answer.err


@pytest.mark.parametrize("form", ["one process", "processes"])
def test_a_deployed_function_and_a_spawned_call_survive_a_restart_of_everything(stranger: Stranger, form: str) -> None:
    up = ("up", "--processes") if form == "processes" else ("up",)
    stranger.has("kept.py", DEPLOYED)
    gate, started = stranger.work / "gate", stranger.work / "started"
    try:
        stranger.squall(*up).must_succeed()
        stranger.squall("deploy", "kept.py").must_succeed()
        assert stranger.python(CALL_DOUBLE).must_succeed().out == "42\n"
        spawn = f"print(squall.Function.from_name('kept', 'hold').spawn({str(started)!r}, {str(gate)!r}, 7).object_id)"
        call = stranger.python(f"import squall; {spawn}").must_succeed().out.strip()
        eventually(started.exists, within_s=20)

        stranger.squall("down").must_succeed()
        assert belonging_to(stranger.folder) == []
        stranger.squall(*up).must_succeed()

        assert stranger.python(CALL_DOUBLE).must_succeed().out == "42\n"
        gate.touch()
        get = f"import squall; print(squall.FunctionCall.from_id({call!r}).get(timeout=40))"
        assert stranger.python(get).must_succeed().out == "7\n"
        assert call in stranger.squall("call", "list").must_succeed().out
    finally:
        stranger.squall("down")
    stranger.left_nothing()


def test_it_survives_a_kill_of_everything(stranger: Stranger) -> None:
    stranger.has("kept.py", DEPLOYED)
    try:
        stranger.squall("up").must_succeed()
        stranger.squall("deploy", "kept.py").must_succeed()
        assert stranger.python(CALL_DOUBLE).must_succeed().out == "42\n"
        for part in belonging_to(stranger.folder):
            part.signal(signal.SIGKILL)
        eventually(lambda: not belonging_to(stranger.folder))

        stranger.squall("up").must_succeed()

        assert stranger.python(CALL_DOUBLE).must_succeed().out == "42\n"
    finally:
        stranger.squall("down")
    stranger.left_nothing()


def test_interrupting_a_run_stops_everything(stranger: Stranger) -> None:
    started = stranger.work / "started"
    stranger.has("endless.py", DEPLOYED + ENDLESS.format(started=str(started)))
    child = stranger.start("run", "endless.py")
    eventually(started.exists, within_s=30)

    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=30)

    assert child.returncode == 130
    assert "Traceback" not in err, err
    stranger.left_nothing()


ENDLESS = """

@app.local_entrypoint()
def main():
    hold.remote({started!r}, "/nowhere/gate", 1)
"""


def test_killing_a_run_leaves_no_process(stranger: Stranger) -> None:
    started = stranger.work / "started"
    stranger.has("endless.py", DEPLOYED + ENDLESS.format(started=str(started)))
    child = stranger.start("run", "endless.py")
    eventually(started.exists, within_s=30)

    child.kill()
    child.communicate(timeout=10)

    stranger.left_nothing()


def test_scripts_test_works_in_a_clean_copy(stranger: Stranger) -> None:
    answer = subprocess.run(
        [stranger.copy / "scripts" / "test", "tests/contracts", "-q", "-m", "not slow"],
        cwd=stranger.work,
        env=stranger.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-2000:]


@pytest.mark.timeout(400)
def test_an_eval_fan_out_with_a_progress_bar_survives_the_kill_of_an_agent(stranger: Stranger) -> None:
    stranger.has("evaluate.py")
    try:
        stranger.squall("up", "--processes", "--agents", "2").must_succeed()
        output = stranger.terminal("run", "evaluate.py", "--folder", stranger.work)
        output.wait_for("received 500", timeout_s=150)
        agent = next(p for p in belonging_to(stranger.folder) if "gpu_agent" in p.command or "gpu-agent" in p.command)
        agent.signal(signal.SIGKILL)
        text = output.finish(timeout_s=120)
    finally:
        stranger.squall("down")

    assert output.child.returncode == 0, text[-3000:]
    assert "2000 in order, none lost, none repeated" in text
    assert "judge: 2000 of 2000 inputs" in text
    assert len(set(re.findall(r"\b\d+/\d+\b", text))) > 3, "no progress bar"
    assert process(agent.pid) is None
    stranger.left_nothing()
