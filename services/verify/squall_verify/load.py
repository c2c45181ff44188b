"""What callers met in a run: calls by form and end, executions again, how long each form took. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from squall_verify.evidence import MAIN, Evidence

UNKNOWN, LOST = "no operation", "LOST"
OF_OTHERS = ("tried", "listed")
"""Lines about calls that another operation made."""


@dataclass
class Form:
    """One way to call."""

    name: str
    operations: int = 0
    refused: int = 0
    """Operations that were told to come back later, or that no gateway answered."""
    inputs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    again: int = 0
    """Inputs that were executed more than once."""
    took_s: list[float] = field(default_factory=list)
    """Of each operation, from its first line to its answer."""

    def percentile(self, part: float) -> float:
        """0 without any."""
        ordered = sorted(self.took_s)
        return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


class Forms(dict[str, Form]):
    """By name; one that is asked for is there."""

    def __missing__(self, name: str) -> Form:
        self[name] = found = Form(name)
        return found


def by_form(evidence: Evidence) -> list[Form]:
    """Every form that was used, the most inputs first. Each accepted input is counted once."""
    forms = Forms()
    form_of = _operations(evidence, forms)
    op_of = {line.call: line.op for line in evidence.seen if line.call and line.what not in OF_OTHERS}
    op_of |= {effect.call: effect.op for effect in evidence.effects}
    executions = Counter(effect.key for effect in evidence.effects if effect.what == "start")
    outcomes = {each.key: each.outcome for each in evidence.recorded}
    for each in evidence.accepted:
        op, _, inside = op_of.get(each.call, "").partition("/")
        form = forms[f"{form_of.get(op, UNKNOWN)}{', from inside' if inside else ''}"]
        form.inputs += 1
        form.ends[outcomes.get(each.key, LOST)] += 1
        form.again += executions[each.key] > 1
    return sorted(forms.values(), key=lambda form: (-form.inputs, form.name))


def _operations(evidence: Evidence, forms: Forms) -> dict[str, str]:
    """The form of each operation; what its caller saw of it is counted."""
    form_of: dict[str, str] = {}
    began: dict[str, float] = {}
    for line in evidence.seen:
        if line.what == "invoke":
            form_of[line.op] = line.form if "." not in line.op else "flood"
            began[line.op] = line.at
            forms[form_of[line.op]].operations += 1
        elif line.op in began and line.seq < 0 and line.what in ("done", "error", "refused", "unknown"):
            form = forms[form_of[line.op]]
            if line.what in ("refused", "unknown"):
                form.refused += 1
            else:
                form.took_s.append(line.at - began[line.op])
    return form_of


def slowest(evidence: Evidence) -> tuple[str, float] | None:
    """The call (no map) of the first workspace that took longest from its acceptance to its record; how long, in s."""
    accepted = {each.key: each for each in evidence.accepted if each.workspace == MAIN and each.kind != "map"}
    took = {
        each.key: each.stored_at - accepted[each.key].stored_at for each in evidence.recorded if each.key in accepted
    }
    if not took:
        return None
    key = max(took, key=lambda each: took[each])
    return key[0], took[key]


def table(forms: list[Form]) -> list[str]:
    """For people."""
    head = f"  {'form':<22}{'operations':>11}{'refused':>8}{'inputs':>8}{'again':>6}{'p50 ms':>9}{'p99 ms':>9}  ended"
    lines = [head]
    for form in forms:
        ends = ", ".join(f"{count} {name}" for name, count in form.ends.most_common())
        numbers = f"{form.operations:>11}{form.refused:>8}{form.inputs:>8}{form.again:>6}"
        times = f"{1000 * form.percentile(0.5):>9.0f}{1000 * form.percentile(0.99):>9.0f}"
        lines.append(f"  {form.name:<22}{numbers}{times}  {ends}")
    return lines
