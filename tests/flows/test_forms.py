"""Batches, options, changed scaling and the rest of `programs/forms.py`, through the whole system in both forms."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flows.conftest import FORMS, PROGRAMS, nothing_was_forbidden, use
from tests.support.platform import SQUALL, Platform, eventually

import squall
from squall import session
from squall.call_graph import InputInfo, InputStatus
from squall.http_api.routes import Route

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FORMS)
def forms(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with FORMS[request.param]() as started:
        started.squall("deploy", PROGRAMS / "forms.py")
        yield started
        nothing_was_forbidden(started)


@pytest.fixture(autouse=True)
def client(forms: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    use(forms, monkeypatch)
    return forms


def function(name: str) -> squall.Function:
    return squall.Function.from_name("forms", name)


def test_a_map_is_run_in_full_batches() -> None:
    function("doubled").update_autoscaler(max_containers=1)
    assert list(function("doubled").map(range(8))) == [(2 * x, 4) for x in range(8)]


def test_batches_of_another_size_by_a_handle() -> None:
    pairs = function("doubled").with_batching(max_batch_size=2, wait_ms=600_000).with_options(max_containers=1)
    assert list(pairs.map(range(4))) == [(2 * x, 2) for x in range(4)]


def test_each_input_of_a_failed_batch_is_tried_again(tmp_path: Path) -> None:
    calls = [function("flaky").spawn(str(tmp_path / "failed"), text) for text in "abc"]
    assert squall.FunctionCall.gather(*calls) == ["a", "b", "c"]


def test_a_batched_method_with_parameters() -> None:
    model = squall.Cls.from_name("forms", "Model").with_options(max_containers=1)(name="big")
    assert list(model.predict.map([1, 2, 3])) == ["big:1:3", "big:2:3", "big:3:3"]


def test_calls_with_options_run_in_other_containers_with_these_options() -> None:
    plain = function("surroundings").remote()
    other = function("surroundings").with_options(env={"B": "2"}, timeout=30)
    changed = other.remote()

    assert plain[1:] == ("1", "1")
    assert changed[1:] == ("1", "2")
    assert changed[0] != plain[0]
    assert other.remote()[0] == function("surroundings").with_options(timeout=30, env={"B": "2"}).remote()[0]


def test_min_containers_can_be_raised_and_lowered_while_deployed() -> None:
    leaf = function("leaf")
    assert leaf.update_autoscaler(min_containers=2, scaledown_window=2).min_containers == 2
    eventually(lambda: leaf.get_current_stats().num_total_runners == 2, within_s=60, what="no second container")
    assert leaf.autoscaler.update(min_containers=None).min_containers == 0
    eventually(lambda: leaf.get_current_stats().num_total_runners == 0, within_s=60, what="they never left")


def test_changed_scaling_outlives_the_services(forms: Platform) -> None:
    if not forms.processes:
        pytest.skip("one process: nothing can be restarted alone")
    model = squall.Cls.from_name("forms", "Model")(name="kept")
    model.update_autoscaler(min_containers=1)
    eventually(lambda: model.get_current_stats().num_total_runners == 1, within_s=60, what="no container")
    for name in ("scheduler", "autoscaler"):
        restart(forms, name)
    assert model.autoscaler.settings().min_containers == 1
    model.autoscaler.update(min_containers=0)


def restart(platform: Platform, name: str) -> None:
    part = platform.part(name)
    os.kill(part.pid, signal.SIGKILL)
    eventually(
        lambda: [p.pid for p in platform.parts_named(name)] not in ([], [part.pid]) and platform.ready(),
        within_s=60,
        what=f"{name} never came back",
    )


def test_a_single_use_container_takes_one_input() -> None:
    containers = [function("once").remote() for _ in range(3)]
    assert len(set(containers)) == 3


def test_a_container_that_wants_no_more_inputs_gets_none() -> None:
    containers = list(function("last_of").map(range(4)))
    assert len(set(containers)) == 4


def test_the_call_graph_tells_who_called_whom() -> None:
    call = function("fan_out").spawn(2)
    _, spawned = call.get(timeout=60)
    (root,) = eventually(lambda: complete(call.get_call_graph(), 3), within_s=30, what="spans never came")
    assert (root.function_name, root.module_name, root.status) == ("fan_out", "forms", InputStatus.SUCCESS)
    assert root.function_call_id == call.object_id
    assert root.task_id
    assert {child.function_name for child in root.children} == {"leaf"}
    assert {child.status for child in root.children} == {InputStatus.SUCCESS}
    assert set(spawned) < {child.function_call_id for child in root.children}


def complete(graph: list[InputInfo], children: int) -> list[InputInfo]:
    """The graph, once the spans of all are there."""
    return graph if len(graph[0].children) == children and all(c.task_id for c in graph[0].children) else []


def test_a_call_with_many_inputs_is_iterated_in_order() -> None:
    call = function("leaf").experimental_spawn_map(range(30))
    assert call is not None
    assert call.num_inputs() == 30
    assert list(call.iter()) == list(range(30))
    assert list(call.iter(5, 8)) == [5, 6, 7]


def test_an_included_app_runs_as_a_part_of_the_other() -> None:
    assert function("of_part").remote(1) == 2


def helper() -> int:
    """Of this module, which no container can import."""
    return 1


def test_a_nested_function_travels_by_value() -> None:
    app, base = squall.App(f"nested-{secrets.token_hex(2)}"), 40  # the one of the other platform may live on

    @app.function(serialized=True)
    def inner(x: int) -> int:
        return x + base + helper()

    @app.function(serialized=True)
    async def outer(x: int) -> int:
        return await inner.remote.aio(x) * 10

    with app.run():
        assert inner.remote(1) == 42
        assert list(outer.map([1, 2])) == [420, 430]


def test_apps_are_looked_up_and_tagged() -> None:
    app = squall.App.lookup("forms")
    assert app.get_tags() == {"kind": "test", "part": "yes"}
    app.set_tags({"kind": "other"})
    assert squall.App.lookup("forms").get_tags() == {"kind": "other"}
    assert app.app_id is not None
    assert squall.App.lookup(app.app_id).name == "forms"
    with pytest.raises(squall.exception.NotFoundError):
        squall.App.lookup("nowhere")
    made = squall.App.lookup("nowhere", create_if_missing=True)
    assert made.app_id == squall.App.lookup("nowhere", create_if_missing=True).app_id
    made.stop()


def test_hooks_methods_and_parameters_are_inherited_and_methods_call_each_other() -> None:
    child = squall.Cls.from_name("forms", "Child")(base=100)
    assert child.through.remote(1) == (["base", "child"], 101, 101)


def test_code_knows_where_and_for_which_call_it_runs() -> None:
    call = squall.Cls.from_name("forms", "Child")().identity.spawn()
    assert call.get(timeout=60) == (False, call.object_id, f"{call.object_id}:0")


FAILING = """
import squall

app = squall.App("failing")
raise_here = True


@app.function()
def f():
    return "mended"


if raise_here and not squall.is_local():
    raise RuntimeError("no such table")
"""


def test_a_deployed_app_that_cannot_be_imported_backs_off_says_so_and_is_mended_by_a_deploy(
    forms: Platform, tmp_path: Path
) -> None:
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    forms.squall("deploy", program)
    waiting = squall.Function.from_name("failing", "f").spawn()

    said = eventually(why_it_waits, within_s=60, what="nobody says why, and when it is tried again")
    assert "import of failing failed: RuntimeError: no such table" in said
    with pytest.raises(TimeoutError):
        waiting.get(timeout=0)

    program.write_text(FAILING.replace("raise_here = True", "raise_here = False"))
    forms.squall("deploy", program)
    assert squall.Function.from_name("failing", "f").remote() == "mended"
    waiting.cancel()


def why_it_waits() -> str:
    status = session.current().client.json("GET", Route.APP_STATUS.format(app="failing"))
    # While the next container starts, only the failure is told.
    return next((str(pool["waiting"]) for pool in status["pools"] if "; next try in " in pool["waiting"]), "")


def test_an_ephemeral_app_that_cannot_be_imported_ends_its_calls_with_the_error(
    forms: Platform, tmp_path: Path
) -> None:
    program = tmp_path / "failing_run.py"
    program.write_text(FAILING + "\n\n@app.local_entrypoint()\ndef main():\n    print(f.remote())\n")
    with forms.popen(SQUALL, "run", program) as running:
        _, errors = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "RuntimeError: no such table" in errors
