"""The entry point of `squall verify`: one run and its report. Exit status 0 if everything holds, else 1."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from squall.errors import SquallError
from squall_verify.evidence import Evidence
from squall_verify.faults import REGISTRY, Fault
from squall_verify.mixed import make_mixed_plan
from squall_verify.plan import make_plan
from squall_verify.report import Report, as_text, make_report
from squall_verify.run import Run, scratch
from squall_verify.settings import MIXED, VerifySettings, parse


def main() -> int:
    """Runs the command line of this process; its exit status."""
    settings = parse(sys.argv[1:])
    logging.getLogger("squall_bus").setLevel(logging.CRITICAL)  # it loses its bus on purpose, and often
    if settings.list_faults:
        return list_faults(settings)
    try:
        return verify(settings)
    except SquallError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n{error.hint}\n")
        return 2


def verify(settings: VerifySettings) -> int:
    """One run."""
    if settings.load == MIXED:
        plan = make_mixed_plan(settings.seed, settings.seconds)
    else:
        plan = make_plan(settings.seed, settings.seconds, chosen(settings.faults))
    folder = scratch(settings)
    say(f"{settings.command}; evidence in {folder}")
    report = make_report(Run(settings, plan, folder, say).evidence(), settings.command)
    save(report, folder)
    sys.stdout.write(json.dumps(report.as_json()) + "\n" if settings.as_json else as_text(report))
    if settings.keep is None and report.holds:
        shutil.rmtree(folder)
    return 0 if report.holds else 1


NAMED_WEIGHT = 0.3
"""Of a fault that is only injected when it is asked for."""


def chosen(names: Sequence[str]) -> list[Fault]:
    """The faults that are meant: every one that this machine can inject, or those of that name."""
    unknown = [name for name in names if name not in REGISTRY]
    if unknown:
        known = ", ".join(REGISTRY)
        raise SystemExit(f"no fault is named {unknown[0]!r}; there are: {known}")
    if not names:
        return [fault for fault in REGISTRY.values() if not fault.missing()]
    for name in names:
        if reason := REGISTRY[name].missing():
            raise SystemExit(f"this machine cannot inject {name}: {reason}")
    return [dataclasses.replace(REGISTRY[name], weight=REGISTRY[name].weight or NAMED_WEIGHT) for name in names]


def list_faults(settings: VerifySettings) -> int:
    """Prints the registry."""
    rows = [(each.name, each.about, each.heals, each.weight, each.missing()) for each in REGISTRY.values()]
    if settings.as_json:
        names = ("name", "about", "heals", "weight", "missing")
        sys.stdout.write(json.dumps([dict(zip(names, row, strict=True)) for row in rows]) + "\n")
        return 0
    for name, about, heals, weight, missing in rows:
        cannot = f"; not here: {missing}" if missing else ""
        sys.stdout.write(f"{name:<18} {about}; {heals} (weight {weight:g}{cannot})\n")
    return 0


def say(what: str) -> None:
    """Progress."""
    sys.stderr.write(f"squall verify: {what}\n")
    sys.stderr.flush()


def save(report: Report, folder: Path) -> None:
    """Report and evidence, for whoever looks into a violation."""
    (folder / "report.json").write_text(json.dumps(report.as_json(), indent=1))
    (folder / "report.txt").write_text(as_text(report))
    (folder / "evidence.json").write_text(json.dumps(as_dict(report.evidence)))


def as_dict(evidence: Evidence) -> dict[str, object]:
    """Everything that the checkers saw."""
    return dataclasses.asdict(evidence)


if __name__ == "__main__":
    sys.exit(main())
