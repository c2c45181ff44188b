"""Callers without an SDK: JSON over HTTP, on the real platform with real containers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import ROOT, Platform, eventually

PROGRAM = Path(__file__).parent / "programs" / "http_callers.py"
EXAMPLES = ROOT / "examples"


@dataclass
class Answer:
    status: int
    body: bytes

    @property
    def told(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines() if line]

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.told["error"]
        return found


@dataclass
class Caller:
    """A program in another language: it has a URL and a token."""

    platform: Platform

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        return self._ask("POST", f"/v1/apps/callers/functions/{path}", data, headers)

    def get(self, path: str) -> Answer:
        return self._ask("GET", path, None, {})

    def _ask(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        known = {"Authorization": f"Bearer {self.platform.token}", "Content-Type": "application/json", **named}
        request = urllib.request.Request(self.platform.url + path, data, known, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as refused:
            return Answer(refused.code, refused.read())


@pytest.fixture(scope="module")
def served() -> Iterator[Platform]:
    with Platform() as platform:
        platform.squall("deploy", PROGRAM)
        platform.squall("deploy", EXAMPLES / "http_service.py")
        yield platform


@pytest.fixture(scope="module")
def caller(served: Platform) -> Caller:
    return Caller(served)


VALUES = [None, True, 7, 2**70, -0.5, "ünï\n", [], {"a": [1, {"b": None}]}]


def test_json_values_arrive_in_the_function_and_come_back_as_they_are(caller: Caller) -> None:
    answer = caller.post("echo/call", {"args": VALUES, "kwargs": {"key": VALUES}})
    assert answer.status == 200
    assert answer.told["result"] == {"args": VALUES, "kwargs": {"key": VALUES}}


def test_a_value_of_a_megabyte_goes_both_ways(caller: Caller) -> None:
    text = "x" * (1 << 20)
    assert caller.post("echo/call", {"args": [text]}).told["result"]["args"] == [text]


def test_an_exception_is_told_with_its_class_message_and_traceback(caller: Caller) -> None:
    answer = caller.post("fail/call", {"args": ["too much"]})
    assert answer.status == 422
    error = answer.error
    assert error["code"] == "function_failed"
    assert error["message"] == "TooMuch: too much"
    assert (error["data"]["type"], error["data"]["module"]) == ("TooMuch", "http_callers")
    assert "raise TooMuch(what)" in error["data"]["traceback"]
    assert error["data"]["call"].startswith("fc-")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("set", "type set is not JSON"),
        ("nan", "not JSON compliant"),
        ("object", "type PosixPath"),
        ("tuple key", "not tuple"),
    ],
)
def test_a_result_that_json_cannot_express_names_function_and_type(caller: Caller, what: str, told: str) -> None:
    answer = caller.post("awkward/call", {"args": [what]})
    assert answer.status == 400
    assert answer.error["code"] == "serialization"
    assert "awkward" in answer.error["message"]
    assert told.lower() in answer.error["message"].lower()


def test_classes_take_parameters_and_share_pools_with_the_sdk(caller: Caller) -> None:
    plain = caller.post("Counter.step/call").told["result"]
    given = caller.post("Counter.step/call", {"parameters": {"start": 40, "key": "AP8="}}).told["result"]
    assert (plain["value"], given["value"], given["key"]) == (1, 41, [0, 255])
    out = caller.platform.run(PROGRAM)  # the SDK's Counter(): the same containers, so its count goes on
    assert out.splitlines() == ["2", "42"]


def test_generators_stream_a_line_for_each_item(caller: Caller) -> None:
    lines = caller.post("items/call", {"args": [3]}).lines
    assert [line["item"] for line in lines[1:-1]] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert lines[-1] == {"done": True, "items": 3}
    broken = caller.post("items/call", {"args": [2, True]}).lines
    assert [line.get("item") for line in broken[1:3]] == [{"n": 0}, {"n": 1}]
    assert (broken[-1]["error"]["code"], broken[-1]["error"]["data"]["type"]) == ("function_failed", "LookupError")


def test_maps_stream_results_with_their_index_and_can_be_read_again(caller: Caller) -> None:
    inputs = [[n] if n % 2 else {"args": [n], "kwargs": {"plus": 100}} for n in range(20)]
    first, *found, last = caller.post("double/map", {"inputs": [*inputs, ["no number"]]}).lines
    assert (first["inputs"], last) == (21, {"done": True, "inputs": 21})
    by_index = {line["index"]: line for line in found}
    assert [by_index[n]["result"] for n in range(20)] == [2 * n if n % 2 else 2 * n + 100 for n in range(20)]
    assert by_index[20]["error"]["data"]["type"] == "TypeError"

    rest = caller.get(f"/v1/calls/{first['call']}/outputs?cursor={found[9]['cursor']}").lines
    assert rest[1:] == [*found[10:], last]


def test_spawned_calls_are_polled_and_cancelled(caller: Caller, tmp_path: Path) -> None:
    spawned = caller.post("double/spawn", {"args": [21]})
    assert spawned.status == 202
    assert caller.get(spawned.told["output"] + "?wait=30").told["result"] == 42

    gate = tmp_path / "gate"
    waiting = caller.post("wait_for/spawn", {"args": [str(gate)]}).told
    assert caller.get(waiting["output"]).status == 202
    caller._ask("POST", f"/v1/calls/{waiting['call']}/cancel", b"{}", {})
    ended = caller.get(waiting["output"] + "?wait=30")
    assert (ended.status, ended.error["code"]) == (409, "cancelled")


def test_a_function_that_takes_too_long_is_a_504(caller: Caller) -> None:
    answer = caller.post("slow/call")
    assert (answer.status, answer.error["code"]) == (504, "function_timeout")


def test_calls_in_json_have_a_trace_without_gaps(caller: Caller) -> None:
    trace, span = "a" * 32, "b" * 16
    call = caller.post("echo/call", {}, traceparent=f"00-{trace}-{span}-01").told["call"]

    def spans() -> dict[str, Any]:
        found = caller.get(f"/v1/calls/{call}/trace").told
        assert found["trace_id"] == trace
        return {each["name"]: each for each in found["spans"]}

    eventually(lambda: {"call", "attempt", "gateway.accept"} <= spans().keys(), what=spans)
    root = spans()["call"]
    assert root["parent_id"] == span
    assert spans()["attempt"]["parent_id"] == root["span_id"]


@pytest.mark.slow
def test_the_curl_example(served: Platform) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    assert example(served, "bash", "http_client.sh") == [
        '{"total":2.0,"items":2}}',
        '"Hallo, Ada!"}',
        '{"item":{"left":3}}',
        '{"item":{"left":2}}',
        '{"item":{"left":1}}',
        '{"total":30.0,"items":2}}',
        "422",
    ]


@pytest.mark.slow
def test_the_node_example(served: Platform) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    lines = example(served, "node", "http_client.mjs")
    assert lines[:5] == ["{ total: 2, items: 2 }", "Hallo, Ada!", "{ left: 3 }", "{ left: 2 }", "{ left: 1 }"]
    assert sorted(lines[5:8]) == [" -> ValueError: nobody to greet", "Ada -> Hello, Ada!", "Grace -> Hello, Grace!"]
    assert lines[8:] == ["{ total: 30, items: 2 }", "function_failed ValueError true"]


def example(platform: Platform, program: str, name: str) -> list[str]:
    """What an example prints."""
    ended = subprocess.run(
        [program, str(EXAMPLES / name)],
        env=platform.client_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--include-tag", "calls in JSON", "--phases", "coverage,fuzzing", "--max-time", "15"),
        ("--exclude-tag", "calls in JSON", "--phases", "coverage", "--max-time", "25"),
    ],
    ids=["calls in JSON", "everything else"],
)
def test_schemathesis_finds_nothing(served: Platform, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Requests made up from the OpenAPI document: no answer of 5xx, none that the document does not describe."""
    config = PROGRAM.with_name("schemathesis.toml")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    fixed = ["--checks", CHECKS, "--max-examples", "10", "--seed", "7", "--request-timeout", "20"]
    ended = subprocess.run(
        [*command, f"{served.url}/openapi.json", *fixed, *options, "--header", f"Authorization: Bearer {served.token}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert " passed" in ended.stdout
