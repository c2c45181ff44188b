"""The calls that a call made, and those that they made: read from its trace and from what the server knows of each.

A trace is a hint, not the law: of a call whose caller ended without sending its spans, only the call itself is here.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple

from squall.client import query
from squall.errors import InvalidError
from squall.http_api.routes import Route

if TYPE_CHECKING:
    from squall.client import Client

MAX_INPUTS = 200
"""Each is one request for its trace."""
CALL, ATTEMPT = "call", "attempt"


class InputStatus(enum.IntEnum):
    """How far an input is."""

    PENDING = 0
    """It waits or runs."""
    SUCCESS = 1
    FAILURE = 2
    INIT_FAILURE = 3
    """Its container could not be started."""
    TERMINATED = 4
    """Cancelled."""
    TIMEOUT = 5
    """It took longer than its function may, or waited longer than it may."""


STATUS = {
    "succeeded": InputStatus.SUCCESS,
    "failed": InputStatus.FAILURE,
    "cancelled": InputStatus.TERMINATED,
    "timed_out": InputStatus.TIMEOUT,
    "expired": InputStatus.TIMEOUT,
}


class InputInfo(NamedTuple):
    """One input of a call, and the inputs of the calls that its code made."""

    input_id: str
    function_call_id: str
    task_id: str
    """The container that ran it; empty if none did."""
    status: InputStatus
    function_name: str
    module_name: str
    children: list[InputInfo]


Key = tuple[str, int]


class _Graph:
    """What the spans of a trace say."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.containers: dict[Key, str] = {}
        self.failed: set[Key] = set()
        self.children: dict[Key, dict[Key, None]] = {}
        self._summaries: dict[str, dict[str, Any]] = {}

    def add(self, spans: list[dict[str, Any]]) -> None:
        inputs = {span["span_id"]: _key(span) for span in spans}
        for span in spans:
            key = _key(span)
            if span["name"] == ATTEMPT:
                self.containers[key] = str(span["attributes"].get("container", ""))
                (self.failed.add if span["error"] else self.failed.discard)(key)
            parent = inputs.get(span["parent_id"])
            if parent is not None and parent[0] != key[0]:
                self.children.setdefault(parent, {})[key] = None

    def info(self, key: Key) -> InputInfo:
        call, index = key
        summary = self._summary(call)
        return InputInfo(
            input_id=f"{call}:{index}",
            function_call_id=call,
            task_id=self.containers.get(key, ""),
            status=self._status(key, summary),
            function_name=summary["function"],
            module_name=summary.get("module", ""),
            children=[self.info(child) for child in self.children.get(key, ())],
        )

    def _status(self, key: Key, summary: dict[str, Any]) -> InputStatus:
        if summary["inputs"] == 1:
            if (summary.get("last_error") or {}).get("phase"):
                return InputStatus.INIT_FAILURE
            return STATUS.get(summary["state"], InputStatus.PENDING)
        if key not in self.containers:
            return STATUS.get(summary["state"], InputStatus.PENDING)
        return InputStatus.FAILURE if key in self.failed else InputStatus.SUCCESS

    def _summary(self, call: str) -> dict[str, Any]:
        if call not in self._summaries:
            self._summaries[call] = self._client.json("GET", Route.CALL.format(call=call))
        return self._summaries[call]

    def inputs(self, call: str) -> int:
        return int(self._summary(call)["inputs"])


def of_call(client: Client, call: str) -> list[InputInfo]:
    """One entry for each input of the call."""
    graph = _Graph(client)
    number = graph.inputs(call)
    if number > MAX_INPUTS:
        raise InvalidError(
            f"{call} has {number} inputs; a call graph has at most {MAX_INPUTS}", fix="`squall trace CALL` shows one."
        )
    for index in range(number):
        graph.add(client.json("GET", query(Route.CALL_TRACE.format(call=call), index=index))["spans"])
    return [graph.info((call, index)) for index in range(number)]


def _key(span: dict[str, Any]) -> Key:
    return str(span["attributes"].get("call", "")), int(span["attributes"].get("index", 0))
