"""Web functions: an answer is its own request's, and what does more than read runs once at most (I23). Pure."""

from __future__ import annotations

from collections import defaultdict

from squall_verify.evidence import Evidence
from squall_verify.invariants.dicts import failures, of_kind
from squall_verify.invariants.histories import overlapping
from squall_verify.invariants.verdict import Findings, Looking
from squall_verify.state import CUT, REFUSED, WebRun

REPEATABLE = ("GET",)
"""It merely reads: when the machine is lost that it was given to, another one may be asked."""
HURT_S = 15.0
"""A container that was lost with a fault may break a request so much later: until then it counts as ready."""


def once_at_most(evidence: Evidence) -> Findings:
    """I23: a POST is executed once at most; 200 is the answer of an execution to this very request; a refused request
    has not been executed, and says when to come again; an answer that is none comes of a fault."""
    look = Looking()
    requests = of_kind(evidence, "web")
    failures(look, requests)
    runs: dict[str, list[WebRun]] = defaultdict(list)
    for run in evidence.state.web_runs:
        runs[run.nonce].append(run)
    asked = {step.values[0] for step in requests}
    for nonce, of_nonce in runs.items():
        once = len(of_nonce) == 1 or of_nonce[0].method in REPEATABLE
        look.at(nonce, once, f"was executed {len(of_nonce)} times, by {[run.pid for run in of_nonce]}")
        look.at(nonce, nonce in asked, "was executed, and nobody has asked for it")
    for step in requests:
        nonce = step.values[0]
        if step.done:
            look.at(nonce, step.got == (nonce, step.what), f"was answered with {step.got}, the answer of another one")
            look.at(nonce, nonce in runs, "was answered, and not executed")
        elif step.outcome == REFUSED:
            look.at(nonce, nonce not in runs, f"was refused ({step.detail}), and executed")
            look.at(nonce, bool(step.got and step.got[0]), f"was refused ({step.detail}) without Retry-After")
        elif step.outcome == CUT:
            hurt = overlapping(evidence, step.began - HURT_S, step.ended)
            look.at(nonce, bool(hurt), f"got no whole answer ({step.detail}), and nothing was hurt")
    return look.findings()
