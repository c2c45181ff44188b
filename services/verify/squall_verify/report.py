"""The report of a run: what was done to the platform, what became of the calls, and what held. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from squall_verify.evidence import Evidence
from squall_verify.invariants import INVARIANTS
from squall_verify.invariants.verdict import SHOWN, State, Verdict, judge
from squall_verify.load import by_form, table
from squall_verify.sometimes import Met, properties, redelivered, superseded

MARKS = {State.OK: "ok", State.VIOLATED: "VIOLATED", State.NOT_EXERCISED: "not exercised"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is said about one run."""

    evidence: Evidence
    command: str
    verdicts: tuple[Verdict, ...]
    sometimes: tuple[Met, ...]

    @property
    def holds(self) -> bool:
        """Nothing was violated."""
        return not any(verdict.state is State.VIOLATED for verdict in self.verdicts)

    @property
    def counts(self) -> dict[str, int]:
        """The run in numbers. An input is one call, or one of a map."""
        evidence = self.evidence
        starts = Counter(effect.key for effect in evidence.effects if effect.what == "start")
        return {
            "operations": len({line.op for line in evidence.seen if line.what == "invoke"}),
            "calls acknowledged": len({each.call for each in evidence.accepted}),
            "inputs acknowledged": len(evidence.accepted),
            "executed": len(starts),
            "re-executed": sum(1 for times in starts.values() if times > 1),
            "recorded": len(evidence.recorded),
            "superseded": len(superseded(evidence)),
            "redelivered": len(redelivered(evidence)),
            "lost": len({each.key for each in evidence.accepted} - {each.key for each in evidence.recorded}),
        }

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        evidence = self.evidence
        return {
            "seed": evidence.seed,
            "seconds": evidence.seconds,
            "holds": self.holds,
            "command": self.command,
            "counts": self.counts,
            "outcomes": dict(Counter(each.outcome for each in evidence.recorded)),
            "faults": [asdict(each) for each in evidence.happened],
            "skipped": list(evidence.skipped),
            **self._load(),
            "sometimes": {met.name: met.times for met in self.sometimes},
            "invariants": [asdict(verdict) for verdict in self.verdicts],
        }

    def _load(self) -> dict[str, Any]:
        if "acted" not in self.evidence.notes:
            return {}
        forms = {
            form.name: {
                "operations": form.operations,
                "refused": form.refused,
                "inputs": form.inputs,
                "again": form.again,
                "ends": dict(form.ends),
                "p50_s": round(form.percentile(0.5), 4),
                "p99_s": round(form.percentile(0.99), 4),
            }
            for form in by_form(self.evidence)
        }
        return {"operator": [what for _, _, what in self.evidence.notes["acted"]], "forms": forms}


def make_report(evidence: Evidence, command: str) -> Report:
    """Judges the evidence."""
    return Report(
        evidence=evidence,
        command=command,
        verdicts=tuple(judge(invariant, evidence) for invariant in INVARIANTS),
        sometimes=properties(evidence),
    )


def as_text(report: Report) -> str:
    """The report for people."""
    evidence = report.evidence
    lines = [f"seed {evidence.seed}, {evidence.seconds:g} s", "", "Faults"]
    lines += _faults(evidence) or ["  none"]
    lines += ["", "Counts"]
    lines += [f"  {name:<20}{count:>8}" for name, count in report.counts.items()]
    outcomes = Counter(each.outcome for each in evidence.recorded)
    lines.append("  outcomes            " + ", ".join(f"{count} {name}" for name, count in outcomes.most_common()))
    lines += _mixed(evidence)
    lines += ["", "Sometimes"]
    lines += [f"  {met.name:<20}{met.times:>8}{'' if met.times else '   not met'}" for met in report.sometimes]
    lines += ["", "Invariants"]
    for verdict in report.verdicts:
        lines += _verdict(verdict)
    # Once more at the end: whoever sees only the last lines of a long run sees what is wrong.
    broken = [verdict for verdict in report.verdicts if verdict.state is State.VIOLATED]
    lines += [line for verdict in broken for line in ["", *_verdict(verdict)]]
    lines += ["", f"{'Everything holds.' if report.holds else 'VIOLATED.'} Again: {report.command}"]
    return "\n".join(lines) + "\n"


def _faults(evidence: Evidence) -> list[str]:
    origin = min((line.at for line in evidence.seen), default=0.0)
    lines = []
    for each in evidence.happened:
        lasted = f" for {each.ended - each.began:.1f} s" if each.ended - each.began > 0.1 else ""
        detail = f" ({each.detail})" if each.detail else ""
        lines.append(f"  {each.began - origin:6.1f} s  {each.name:<18} {each.victim}{lasted}{detail}")
    return lines + [f"  not possible: {what}" for what in evidence.skipped]


def _mixed(evidence: Evidence) -> list[str]:
    """Of a mixed load: the operator, the forms of call, and the slowest call."""
    if "acted" not in evidence.notes:
        return []
    origin = min((line.at for line in evidence.seen), default=0.0)
    lines = ["", "Operator"]
    lines += [
        f"  {began - origin:6.1f} s  {what} ({ended - began:.1f} s)" for began, ended, what in evidence.notes["acted"]
    ]
    lines += ["", "Forms of call", *table(by_form(evidence))]
    if slowest := evidence.notes.get("slowest"):
        lines += ["", f"Slowest call: {slowest}, {evidence.notes['slowest_s']:.2f} s from its acceptance to its record"]
        lines += [f"  {line}".rstrip() for line in evidence.notes["trace"].splitlines()]
    return lines


def _verdict(verdict: Verdict) -> list[str]:
    note = f"  ({verdict.note})" if verdict.note else ""
    lines = [f"  {verdict.name:<5}{MARKS[verdict.state]:<14}{verdict.checked:>7}  {verdict.promise}{note}"]
    shown: Sequence[str] = [f"         {each.about}: {each.what}" for each in verdict.violations[:SHOWN]]
    more = len(verdict.violations) - len(shown)
    return [*lines, *shown, *([f"         and {more} more"] if more > 0 else [])]
