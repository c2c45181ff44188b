"""One caller of a run, as a process of its own: begins operations when the plan says, and logs what it sees of them.

The log is written before a request is sent and after its answer has come, one line each, so that it tells the truth
also when this process is killed. `python -m squall_verify.client PLAN CLIENT LOG START SECONDS OTHER_URL RECEIVER`.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import squall
from squall import errors, session
from squall_service.clock import SystemClock
from squall_verify import prying
from squall_verify.evidence import GUEST, MAIN
from squall_verify.flooding import flood
from squall_verify.plan import CLIENTS, FLOOD_OP, GUEST_CLIENT
from squall_verify.stateful import NAME, Stateful, forms
from squall_verify.stepping import StepLog, name_of_log

THREADS = 16
"""A call, a web request or a commit may wait for a fault to end; the others go on meanwhile."""
GET_S = 150.0
"""Longer than any fault and its repair; who waits longer has lost his call."""
FLOOD_BEGINS_S = 30.0
_CLOCK = SystemClock()
Job = Mapping[str, Any]


class Log:
    """The client's log: what it asked for and what it was told."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, op: str, what: str, **more: Any) -> None:
        """One line, whole."""
        os.write(self._file, (json.dumps({"op": op, "what": what, "at": _CLOCK.now(), **more}) + "\n").encode())

    def value(self, op: str, value: Mapping[str, Any], seq: int = -1) -> None:
        """A result that came; it says itself whose it is."""
        known = {name: value[name] for name in ("call", "index", "nonce", "version")}
        self.write(op, "value", seq=seq, **known)

    def error(self, op: str, error: BaseException, seq: int = -1) -> None:
        """A call that ended badly, or was refused, or whose fate is unknown."""
        self.write(op, kind_of(error), seq=seq, error=type(error).__name__, detail=str(error)[:300])


def log_name(client: int) -> str:
    """Of a client's log, in the folder of the run."""
    return f"client-{client}.jsonl"


def kind_of(error: BaseException) -> str:
    """What an error says about the call: its own end, a refusal before it was taken, or nothing."""
    if isinstance(error, errors.ResourceExhaustedError | errors.StorageFullError):
        return "refused"
    if isinstance(error, errors.ServiceError | errors.InternalError | TimeoutError) and not isinstance(
        error, errors.FunctionTimeoutError | errors.CallExpiredError
    ):
        return "unknown"
    return "error"


class Elsewhere(NamedTuple):
    """URLs of what a caller knows beside its own gateway."""

    other_url: str
    """Of another gateway."""
    receiver: str
    """Of webhooks."""


class Caller:
    """Carries out operations."""

    def __init__(
        self,
        log: Log,
        steps: StepLog,
        elsewhere: Elsewhere,
        workspace: str = MAIN,
        strangers: Sequence[Path] = (),
        objects: str = NAME,
    ) -> None:
        self._log = log
        self._elsewhere = elsewhere
        self._workspace = workspace
        self._strangers = strangers
        """Logs of the callers of the other workspace."""
        self._forms: dict[str, Callable[[str, Job], None]] = {
            "remote": lambda op, job: self._remote("plain", op, job),
            "many": lambda op, job: self._remote("many", op, job),
            "narrow": lambda op, job: self._remote("narrow", op, job),
            "timeout": lambda op, job: self._remote("slow", op, job),
            "retry": lambda op, job: self._spawn("flaky", op, job),
            "spawn": lambda op, job: self._spawn("plain", op, job),
            "steady": lambda op, job: self._spawn("held", op, job),
            "forget": self._forget,
            "flood": self._flood,
            "map": self._map,
            "starmap": lambda op, job: self._map(op, job, starred=True),
            "unordered": lambda op, job: self._map(op, job, order_outputs=False),
            "exceptions": lambda op, job: self._map(op, job, return_exceptions=True),
            "generator": self._generator,
            "method": self._method,
            "nested": lambda op, job: self._remote("outer", op, job),
            "cancel": self._cancel,
            "bulky": self._bulky,
            "twice": self._twice,
            "keyed": self._keyed,
            "hog": self._hog,
            "lone": self._lone,
            "pry": self._pry,
            **forms(Stateful(steps, workspace, objects)),
        }

    def carry_out(self, operation: Mapping[str, Any]) -> None:
        """One operation, from its first line to its last."""
        op, form = operation["id"], operation["form"]
        job = {"op": op, **operation["given"]}
        self._log.write(op, "invoke", form=form, index=int(job.get("n", 1)))
        try:
            self._forms[form](op, job)
        except (squall.Error, TimeoutError, RuntimeError) as error:
            self._log.error(op, error)
        except Exception as error:
            self._log.error(op, error)
        else:
            self._log.write(op, "done")

    # ------------------------------------------------------------------ forms

    def _function(self, name: str) -> squall.Function:
        return squall.Function.from_name("verify", name)

    def _called(self, name: str, job: Job) -> squall.Function:
        """The function, with a webhook if the job says so."""
        function = self._function(name)
        return (
            function.with_webhook(f"{self._elsewhere.receiver}/{self._workspace}/{job['op']}")
            if job.get("tells")
            else function
        )

    def _remote(self, function: str, op: str, job: Job) -> None:
        self._log.value(op, self._called(function, job).remote(job))

    def _spawn(self, function: str, op: str, job: Job) -> None:
        call = self._called(function, job).spawn(job)
        self._log.write(op, "ack", call=call.object_id)
        self._log.value(op, call.get(timeout=GET_S))

    def _forget(self, op: str, job: Job) -> None:
        self._log.write(op, "ack", call=self._called("plain", job).spawn(job).object_id)

    def _flood(self, op: str, job: Job) -> None:
        """More calls at once than the gateways take; each is an operation of its own."""
        crowd = self._function("crowd")

        def send(number: int) -> bool:
            one = f"{op}.{number}"
            self._log.write(one, "invoke", form="forget")
            try:
                self._log.write(one, "ack", call=crowd.spawn({"op": one, "s": job["s"]}).object_id)
            except squall.Error as error:
                self._log.error(one, error)
                return kind_of(error) != "refused"
            self._log.write(one, "done")
            return True

        flood(job["n"], job["refusals"], send)

    def _map(self, op: str, job: Job, *, starred: bool = False, **how: Any) -> None:
        plain, n = self._called("plain", job), job["n"]
        results = (
            plain.starmap(((job, number) for number in range(n)), **how)
            if starred
            else plain.map([job] * n, range(n), **how)
        )
        for seq, value in enumerate(results):
            if isinstance(value, Exception):
                self._log.error(op, value, seq)
            else:
                self._log.value(op, value, int(value["number"]))

    def _generator(self, op: str, job: Job) -> None:
        for item in self._called("stream", job).remote_gen(job):
            self._log.write(op, "item", seq=item["number"], call=item["call"], nonce=item["nonce"])

    def _method(self, op: str, job: Job) -> None:
        counter = squall.Cls.from_name("verify", "Counter")(start=job["start"])
        value = counter.add.remote(job)
        self._log.value(op, value)
        if value["sum"] != job["start"] + job["x"]:
            raise AssertionError(f"{value['sum']} is not {job['start']} + {job['x']}")

    def _cancel(self, op: str, job: Job) -> None:
        call = self._called("held", job).spawn(job)
        self._log.write(op, "ack", call=call.object_id)
        time.sleep(job["after_s"])
        self._log.write(op, "cancelling", call=call.object_id)
        call.cancel()
        self._log.write(op, "cancelled", call=call.object_id)
        self._log.value(op, call.get(timeout=GET_S))

    def _bulky(self, op: str, job: Job) -> None:
        data = hashlib.sha256(op.encode()).digest() * (job["bytes"] // 32)
        value = self._function("bulky").remote(job, data)
        self._log.value(op, value)
        if value["data"] != data:
            raise AssertionError(f"{len(data)} bytes came back as other {len(value['data'])}")

    def _twice(self, op: str, job: Job) -> None:
        """The same request through both gateways at once, as an impatient client repeats it."""
        from squall import invoke, tracing
        from squall.client import Client, query
        from squall.config import ServerAddress
        from squall.http_api.protocol import Header
        from squall.http_api.routes import Route
        from squall.ids import new_call_id
        from squall.spec import Kind

        function = self._function("plain")
        target = function.hydrate()._origin.target()
        call = new_call_id(target.client.info().shards)
        body = invoke.encode(target, (job,), {}).inline or b""
        headers = {**invoke.headers(target, Kind.SPAWN, tracing.begin()), Header.CALL: call}
        here = session.current().client
        there = Client(ServerAddress(self._elsewhere.other_url, here.address.token), patient=True)

        def post(client: Client) -> str:
            answer = client.request("POST", query(Route.CALLS, wait=0), headers, body)
            return str(json.loads(answer.body)["call"])

        with ThreadPoolExecutor(2) as both:
            acknowledged = list(both.map(post, [here, there]))
        for each in acknowledged:
            self._log.write(op, "ack", call=each)
        self._log.value(op, squall.FunctionCall.from_id(call).get(timeout=GET_S))

    def _keyed(self, op: str, job: Job) -> None:
        """The same key several times at once, then with other arguments."""
        function = self._function("plain").with_idempotency_key(op)
        with ThreadPoolExecutor(3) as several:
            calls = list(several.map(lambda _: function.spawn(job).object_id, range(3)))
        for each in calls:
            self._log.write(op, "ack", call=each)
        try:
            self._log.write(op, "ack", call=function.spawn({**job, "other": True}).object_id)
        except errors.IdempotencyConflictError:
            self._log.write(op, "conflict")
        self._log.value(op, squall.FunctionCall.from_id(calls[0]).get(timeout=GET_S))

    def _hog(self, op: str, job: Job) -> None:
        """More work than all machines together can do at once."""
        n = job["n"]
        for value in self._function("hog").map([job] * n, range(n), order_outputs=False):
            self._log.value(op, value, int(value["number"]))

    def _lone(self, op: str, job: Job) -> None:
        """One call while the other workspace's flood goes on."""
        until = _CLOCK.monotonic() + FLOOD_BEGINS_S
        while not prying.has_result(self._strangers, FLOOD_OP) and _CLOCK.monotonic() < until:
            time.sleep(0.05)
        time.sleep(job["after_s"])
        self._remote("lone", op, job)

    def _pry(self, op: str, _: Job) -> None:
        """Requests about the newest call of the other workspace, and a look at what is listed."""
        call = prying.newest_call(self._strangers)
        client = session.current().client
        if call:
            for request, error in prying.try_everything(client, call):
                self._log.write(op, "tried", call=call, detail=request, error=error)
        for listed in prying.listed(client):
            self._log.write(op, "listed", call=listed, detail=self._workspace)

    def reread(self, op: str, call: str) -> None:
        """Read a result again that was read before, or never."""
        self._log.write(op, "reread", call=call)
        try:
            self._log.value(op, squall.FunctionCall.from_id(call).get(timeout=GET_S))
        except Exception as error:
            self._log.write(op, "reread-error", call=call, error=type(error).__name__, detail=str(error)[:300])


def main() -> int:
    """Carries out one client's part of a plan."""
    plan_file, number, log_file, start_file, seconds, other_url, receiver = sys.argv[1:8]
    plan = json.loads(Path(plan_file).read_text())
    folder, is_guest = Path(log_file).parent, int(number) == GUEST_CLIENT
    strangers = [folder / log_name(each) for each in range(CLIENTS + 1) if (each == GUEST_CLIENT) != is_guest]
    workspace = GUEST if is_guest else MAIN
    steps = StepLog(folder / name_of_log(int(number)), workspace)
    caller = Caller(Log(Path(log_file)), steps, Elsewhere(other_url, receiver), workspace, strangers)
    waiting: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    flooding: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    for operation in plan["operations"]:
        if operation["client"] == int(number):
            (flooding if operation["form"] == "flood" else waiting).put(operation)
    started = _started(Path(start_file), int(number))
    # The flood has a thread to itself: on a busy machine the others may be late by more than the run takes.
    threads = [
        threading.Thread(target=_work, args=(each, caller, started, float(seconds)))
        for each in [*[waiting] * THREADS, flooding]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reader, op, call in plan.get("reread", ()):
        if reader == int(number):
            caller.reread(op, call)
    return 0


def ready_name(start_file: Path, number: int) -> Path:
    """The file that says that a client is ready."""
    return start_file.with_name(f"{start_file.name}-{number}")


def _started(start_file: Path, number: int) -> float:
    """When everything begins: not before all callers are there, which takes seconds on a busy machine."""
    ready_name(start_file, number).touch()
    while not start_file.exists():
        time.sleep(0.02)
    return float(start_file.read_text())


def _work(waiting: queue.SimpleQueue[Mapping[str, Any]], caller: Caller, started: float, seconds: float) -> None:
    for operation in _due(waiting, started, seconds):
        caller.carry_out(operation)


def _due(waiting: queue.SimpleQueue[Mapping[str, Any]], started: float, seconds: float) -> Iterator[Mapping[str, Any]]:
    """Operations when their time has come, in their order; what is late begins late, or not at all after the end."""
    while True:
        try:
            operation = waiting.get_nowait()
        except queue.Empty:
            return
        time.sleep(max(0.0, started + operation["at_s"] - _CLOCK.now()))
        if _CLOCK.now() > started + seconds:
            return
        yield operation


if __name__ == "__main__":
    sys.exit(main())
