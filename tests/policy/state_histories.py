"""Histories of dicts, queues, volumes, web functions and schedules that the checkers must accept, and others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from squall_verify.evidence import Accepted, Deployed, Evidence, FunctionFacts, Happened, Recorded
from squall_verify.state import CONFLICT, CUT, FAILED, NEVER, REFUSED, UNKNOWN, Heard, Scheduled, State, Step, WebRun


def run(*steps: Step, **more: Any) -> Evidence:
    state = {name: more.pop(name) for name in ("web_runs", "schedules", "heard") if name in more}
    return Evidence(state=State(steps=steps, **state), **more)


def step(kind: str, what: str, place: str, began: float, ended: float = NEVER, **more: Any) -> Step:
    """Without an end its outcome is not known."""
    known: dict[str, Any] = {"op": f"{what}-{place}-{began:g}", "number": 0}
    known["outcome"] = UNKNOWN if ended == NEVER else "done"
    return Step(**{**known, "kind": kind, "what": what, "place": place, "began": began, "ended": ended, **more})


# ---------------------------------------------------------------------- dicts


def put(value: str, began: float, ended: float = NEVER) -> Step:
    return step("dict", "put", "r", began, ended, values=(value,))


def get(value: str, began: float, ended: float) -> Step:
    return step("dict", "get", "r", began, ended, got=(value,))


def claim(value: str, won: bool, began: float, ended: float = NEVER) -> Step:
    return step("dict", "claim", "c", began, ended, values=(value,), got=(str(won),))


def offer(value: str, began: float, ended: float = NEVER, told: str = "True") -> Step:
    return step("dict", "offer", "t", began, ended, values=(value,), got=(told,))


def pop(value: str, began: float, ended: float = NEVER) -> Step:
    return step("dict", "pop", "t", began, ended, got=(value,))


def final(*lines: str) -> Step:
    return step("dict", "final", "", 90, 91, got=lines)


D1_GOOD = [
    run(get("", 1, 2), put("a", 3, 4), get("a", 5, 6), put("b", 7, 9), get("a", 7.1, 8), get("b", 8.1, 8.5)),
    run(put("a", 1, 9), put("b", 2, 8), get("b", 3, 4), get("a", 5, 6)),
    run(put("a", 1, 2), put("b", 3), get("a", 4, 5), get("b", 6, 7)),
    run(put("a", 1, 2), put("lost", 3), get("a", 4, 5)),
]
D1_BAD = [
    run(put("a", 1, 2), put("b", 3, 4), get("a", 5, 6)),  # stale
    run(put("a", 1, 2), get("", 3, 4)),
    run(get("a", 1, 2), put("a", 3, 4)),
    run(get("nobody's", 1, 2)),
    run(put("a", 1, 9), put("b", 2, 8), get("b", 3, 4), get("a", 5, 6), get("b", 7, 7.5)),  # back again
    run(put("a", 1, 2), replace(put("b", 3, 4), outcome=FAILED)),
]
D2_GOOD = [
    run(claim("a", True, 1, 2), claim("b", False, 1, 2), final("c=a")),
    run(claim("a", False, 1), claim("b", False, 1, 2), final("c=a")),
]
D2_BAD = [
    run(claim("a", True, 1, 2), claim("b", True, 1, 2), final("c=a")),
    run(claim("a", True, 1, 2), claim("b", False, 1, 2), final("c=b")),
    run(claim("a", False, 1, 2), claim("b", False, 1, 2), final("c=a")),
    run(claim("a", True, 1, 2), final()),
]
D3_GOOD = [
    run(offer("a", 1, 2), pop("a", 3, 4), offer("b", 5, 6), offer("c", 7, 8, "False"), final("t=b")),
    run(offer("a", 1, 2), pop("", 3), offer("b", 5, 6), final("t=b")),
    run(offer("a", 1), pop("a", 3, 4), final()),
]
D3_BAD = [
    run(offer("a", 1, 2), pop("a", 3, 4), pop("a", 3, 4), final()),
    run(offer("a", 1, 2), final()),
    run(offer("a", 1, 2), offer("b", 3, 4), pop("a", 5, 6), pop("b", 7, 8), final()),
    run(pop("a", 1, 2), final()),
    run(offer("a", 1, 2, "False"), pop("a", 3, 4), final()),
]

# ---------------------------------------------------------------------- queues


def enqueue(began: float, ended: float = NEVER, *values: str) -> Step:
    return step("queue", "put", "a", began, ended, values=values)


def dequeue(began: float, ended: float = NEVER, *got: str) -> Step:
    return step("queue", "get", "a", began, ended, values=("3",), got=got)


def drained(*got: str) -> Step:
    return step("queue", "final", "a", 90, 91, got=got)


TWO = (enqueue(1, 2, "p.0", "p.1"), enqueue(3, 4, "q.0"))
QUEUE_GOOD = [
    run(*TWO, dequeue(5, 6, "p.0"), drained("p.1", "q.0")),
    run(*TWO, dequeue(5, 7, "q.0"), dequeue(5, 7, "p.0", "p.1"), drained()),
    run(*TWO, dequeue(5), drained("q.0")),
    run(enqueue(1, NEVER, "p.0"), dequeue(5, 6, "p.0"), drained()),
]
Q1_BAD = [
    run(*TWO, dequeue(5, 6, "p.0"), drained("p.0", "p.1", "q.0")),
    run(*TWO, dequeue(5, 6, "strange.0"), drained("p.0", "p.1", "q.0")),
    run(*TWO, replace(dequeue(5, 6), outcome=FAILED), drained("p.0", "p.1", "q.0")),
]
Q2_BAD = [run(*TWO, dequeue(5, 6, "p.0"), drained("p.1")), run(*TWO, drained())]
Q3_BAD = [
    run(*TWO, dequeue(5, 6, "q.0"), dequeue(7, 8, "p.0"), drained("p.1")),
    run(*TWO, dequeue(5, 6, "p.1", "p.0"), drained("q.0")),
]

# ---------------------------------------------------------------------- volumes


def commit(value: str, size: str, version: int, began: float, ended: float = NEVER, expected: str = "") -> Step:
    return step("volume", "commit", "g", began, ended, values=(value, size, expected), version=version)


def look(version: int, began: float, *sizes: str) -> Step:
    return step(
        "volume", "look", "g", began, began + 1, version=version, got=tuple(f"g/{i}={s}" for i, s in enumerate(sizes))
    )


def read(value: str, began: float) -> Step:
    return step("volume", "read", "g/0", began, began + 1, got=(value,))


def found(version: int, value: str, *own: str) -> Step:
    lines = (*(f"g/{number}={value}" for number in range(3)), *(f"own/{each}={each}" for each in own))
    return step("volume", "final", "", 90, 91, version=version, got=lines)


COMMITS = (commit("a", "5", 1, 1, 2), commit("b", "6", 2, 3, 4))
VOLUME_GOOD = [
    run(*COMMITS, look(1, 2.1, "5", "5", "5"), look(2, 5, "6", "6", "6"), read("b", 5), found(2, "b", "a", "b")),
    run(*COMMITS, commit("c", "7", 0, 5), look(3, 6, "7", "7", "7"), read("c", 6), found(3, "c", "a", "b", "c")),
    run(look(0, 0), *COMMITS, replace(commit("x", "8", 0, 5, 6, "1"), outcome=CONFLICT), found(2, "b", "a", "b")),
]
I38_BAD = [
    run(*COMMITS, found(1, "b", "a", "b")),
    run(*COMMITS, found(2, "b", "a")),
    run(*COMMITS, found(2, "nobody's", "a", "b")),
    run(*COMMITS, replace(commit("x", "8", 0, 5, 6, "1"), outcome=CONFLICT), found(2, "b", "a", "b", "x")),
]
I39_BAD = [
    run(*COMMITS, look(2, 5, "6", "5", "6")),
    run(*COMMITS, look(2, 5, "5", "5", "5")),
    run(*COMMITS, look(1, 5, "5", "5", "5")),
    run(*COMMITS, look(2, 5, "6", "6")),
    run(COMMITS[0], commit("b", "6", 1, 3, 4)),
    run(commit("a", "5", 2, 1, 2), commit("b", "6", 1, 3, 4)),
]
I40_BAD = [
    run(*COMMITS, read("a", 5)),
    run(*COMMITS, read("mixed: ...", 5)),
    run(*COMMITS, read("", 5)),
    run(*COMMITS, found(2, "a", "a", "b")),
    run(*COMMITS, commit("c", "7", 5, 6, 7, "2")),
]

# ---------------------------------------------------------------------- web


def ask(outcome: str = "done", *got: str, **more: Any) -> Step:
    return step("web", "POST", "", 100, 101, values=("n",), outcome=outcome, got=got, **more)


RAN = (WebRun(nonce="n", at=100.5, method="POST", pid=1, version=1),)
HURT = (Happened(name="kill-agent", began=99, ended=99),)
READ = step("web", "GET", "", 100, 101, values=("n",), got=("n", "GET"))
I23_GOOD = [
    run(READ, web_runs=tuple(replace(each, method="GET") for each in RAN * 2)),
    run(ask("done", "n", "POST"), web_runs=RAN),
    run(ask(REFUSED, "1", detail="503")),
    run(ask(CUT), web_runs=RAN, happened=HURT),
]
I23_BAD = [
    run(ask("done", "n", "POST"), web_runs=RAN * 2),
    run(ask("done", "other", "POST"), web_runs=RAN),
    run(ask("done", "n", "POST")),
    run(ask(REFUSED, "1"), web_runs=RAN),
    run(ask(REFUSED, "")),
    run(ask(CUT), web_runs=RAN),
    run(ask(FAILED)),
    run(web_runs=RAN),
]

# ---------------------------------------------------------------------- schedules

TICKED = Scheduled(
    schedule="sc-1",
    workspace="main",
    function="ticked",
    since=100.0,
    handled=106.0,
    called=2,
    missed=1,
    paused=True,
    ticks=((102.0, "fc-1"), (104.0, "fc-2"), (106.0, "fc-3")),
    following=("fc-4",),
    paused_at=107.0,
)


def scheduled(*calls: tuple[str, float], record: Scheduled = TICKED, **more: Any) -> Evidence:
    accepted = tuple(
        Accepted(call=call, index=0, pool="po", function="fu", kind="spawn", stored_at=at, deadline=1e9)
        for call, at in calls
    )
    facts = {"fu": FunctionFacts(name="ticked")}
    deployed = (Deployed(version=1, began=98.0, ended=99.0),)
    return run(schedules=(record,), accepted=accepted, functions=facts, deployed=deployed, **more)


CALLED = (("fc-1", 102.1), ("fc-3", 106.1))
SCHEDULE_GOOD = [
    scheduled(*CALLED),
    scheduled(*CALLED, ("fc-2", 104.1)),  # called, and told as missed by who came after a crash
    scheduled(*CALLED, ("fc-4", 107.0)),
    scheduled(*CALLED, ("fc-4", 107.0), ("fc-5", 107.0), record=replace(TICKED, following=("fc-4", "fc-5"))),
    scheduled(
        *CALLED,
        ("fc-9", 106.2),
        happened=(Happened(name="late-call", began=106, ended=107, victim="JOURNAL", detail="fc-9"),),
    ),
]
I27_BAD = [
    scheduled(*CALLED, ("fc-9", 106.2)),
    scheduled(CALLED[0]),
    scheduled(*CALLED, record=replace(TICKED, missed=0)),
    scheduled(*CALLED, record=replace(TICKED, called=5)),
]
I28_BAD = [scheduled(("fc-1", 101.0), CALLED[1]), scheduled(("fc-1", 140.0), CALLED[1])]
I31_BAD = [
    scheduled(*CALLED, record=replace(TICKED, since=150.0)),
    scheduled(*CALLED, record=replace(TICKED, paused=False)),
    scheduled(*CALLED, record=replace(TICKED, paused_at=140.0)),
    scheduled(*CALLED, ("fc-4", 109.0)),
]

# ---------------------------------------------------------------------- webhooks


def hooked(*heard: Heard, outcome: str = "failed", webhook: str = "http://r/main/op") -> Evidence:
    """One input that asked for a webhook and has ended, and what its receiver got."""
    about: dict[str, Any] = {"call": "fc-1", "index": 2}
    accepted = Accepted(**about, pool="p", function="f", kind="spawn", stored_at=1, deadline=99, webhook=webhook)
    recorded = Recorded(**about, outcome=outcome, attempt="1-a", stored_at=2)
    return run(accepted=(accepted,), recorded=(recorded,), heard=heard)


def heard(**more: Any) -> Heard:
    told: dict[str, Any] = {"id": "fc-1-2", "at": 3, "url": "http://r/main/op", "key": ("fc-1", 2), "outcome": "failed"}
    return Heard(**{**told, **more})


I25_GOOD = [hooked(heard()), hooked(heard(answer=500), heard(answer=0), heard(), heard())]
I25_BAD = [
    hooked(),
    hooked(heard(answer=500), heard(answer=0)),
    hooked(heard(signed=False)),
    hooked(heard(outcome="succeeded")),
    hooked(heard(), heard(url="http://r/guest/op")),
    hooked(heard(), heard(digest="other")),
    hooked(heard(), heard(id="fc-1-3")),
    hooked(heard(), webhook=""),
    hooked(heard(), heard(key=("fc-9", 0), id="fc-9-0", url="")),
]


STATE_GOOD: list[tuple[str, Evidence]] = [
    *(("D1", each) for each in D1_GOOD),
    *(("D2", each) for each in D2_GOOD),
    *(("D3", each) for each in D3_GOOD),
    *((name, each) for each in QUEUE_GOOD for name in ("Q1", "Q2", "Q3")),
    *((name, each) for each in VOLUME_GOOD for name in ("I38", "I39", "I40")),
    *(("I23", each) for each in I23_GOOD),
    *(("I25", each) for each in I25_GOOD),
    ("S1", run(sandboxes=())),
    *((name, each) for each in SCHEDULE_GOOD for name in ("I27", "I28", "I31")),
]
STATE_BAD: list[tuple[str, Evidence]] = [
    (name, each)
    for name, several in (
        ("D1", D1_BAD),
        ("D2", D2_BAD),
        ("D3", D3_BAD),
        ("Q1", Q1_BAD),
        ("Q2", Q2_BAD),
        ("Q3", Q3_BAD),
        ("I38", I38_BAD),
        ("I39", I39_BAD),
        ("I40", I40_BAD),
        ("I23", I23_BAD),
        ("I25", I25_BAD),
        ("I27", I27_BAD),
        ("I28", I28_BAD),
        ("I31", I31_BAD),
        ("S1", [run(sandboxes=("link sq1",))]),
    )
    for each in several
]
MET = [
    ("claim lost to another", run(claim("b", False, 1, 2))),
    ("item got by another", run(dequeue(1, 2, "p.0"))),
    ("commits at the same time", run(COMMITS[0], commit("b", "6", 2, 1.5, 4))),
    (
        "tick while something was hurt",
        scheduled(happened=(Happened(name="kill-bus", began=106, ended=106, victim="bus"),)),
    ),
    ("web request without an answer", run(ask(CUT))),
    ("webhook sent again", run(heard=(heard(), heard(answer=500)))),
]
