"""Schedules: one call for each tick, not before its time, whatever clocks and schedulers do (I27-I31). Pure."""

from __future__ import annotations

from squall_verify.evidence import Accepted, Evidence
from squall_verify.invariants.histories import overlapping, slack_s
from squall_verify.invariants.verdict import Findings, Looking
from squall_verify.state import Scheduled

EARLY_S = 0.1
"""Between the clock of a scheduler and the time that the bus server writes down, on one machine."""
LATE_S = 15.0
CALM_S = 20.0
BEHIND_S = 20.0
"""The last tick that was decided on may be so old when schedules are paused, the period included."""
PAUSED_S = 1.0
BEGAN_S = 30.0
"""After the first deploy: its records are made by whoever leads then."""


def _calls(evidence: Evidence, schedule: Scheduled) -> list[Accepted]:
    """The calls of its function; nobody else calls it."""
    injected = evidence.injected
    return [
        each
        for each in evidence.accepted
        if each.workspace == schedule.workspace
        and each.call not in injected
        and each.function in evidence.functions
        and evidence.functions[each.function].name == schedule.function
    ]


def one_call(evidence: Evidence) -> Findings:
    """I27: each tick has one call or is told to be missed, and each call is that of a tick."""
    look = Looking()
    for schedule in evidence.state.schedules:
        tick_of = {call: tick for tick, call in schedule.ticks}
        calls = _calls(evidence, schedule)
        for each in calls:
            of_a_tick = each.call in tick_of or (schedule.paused and each.call in schedule.following)
            look.at(each.key, of_a_tick and each.index == 0, "is the call of no tick that was decided on")
        made = {each.call for each in calls}
        without = [tick for tick, call in schedule.ticks if call not in made]
        told = f"{len(without)} ticks without a call, {schedule.missed} told as missed: {without[:5]}"
        look.at(schedule.schedule, len(without) <= schedule.missed, told)
        decided = schedule.called + schedule.missed
        wrong = f"{decided} ticks told ({schedule.called} called), {len(schedule.ticks)} there were"
        look.at(schedule.schedule, decided == len(schedule.ticks), wrong)
        look.at(schedule.schedule, len(made) >= schedule.called, f"{schedule.called} called, {len(made)} calls")
    return look.findings()


def in_time(evidence: Evidence) -> Findings:
    """I28: no tick comes before its time by the clock that its scheduler had, nor late while nothing is hurt."""
    look = Looking()
    for schedule in evidence.state.schedules:
        tick_of = {call: tick for tick, call in schedule.ticks}
        for each in _calls(evidence, schedule):
            if each.call not in tick_of:
                continue
            tick = tick_of[each.call]
            near = overlapping(evidence, min(tick, each.stored_at) - CALM_S, each.stored_at)
            skew = max((fault.skew_s for fault in near if fault.victim.startswith("scheduler")), default=0.0)
            early = tick - each.stored_at
            look.at(
                each.key, early <= EARLY_S + skew, f"came {early:.2f} s before its tick; a clock was {skew:g} s off"
            )
            if not near:
                look.at(each.key, -early <= LATE_S, f"came {-early:.1f} s after its tick, and nothing was hurt")
    return look.findings()


def steady(evidence: Evidence) -> Findings:
    """I31: deploys leave a schedule's phase alone, faults do not end it, and a pause that was acknowledged does."""
    look = Looking()
    for schedule in evidence.state.schedules:
        deploys = [each.ended for each in evidence.deployed if each.workspace == schedule.workspace]
        first = min(deploys, default=schedule.since)
        hurt = slack_s(evidence, first, schedule.since, lambda _: True)
        began = f"counts from {schedule.since:.1f}, declared was it at {first:.1f}"
        look.at(schedule.schedule, schedule.since - first <= BEGAN_S + hurt, began)
        if schedule.paused_at is None:
            continue
        behind = schedule.paused_at - schedule.handled
        look.at(schedule.schedule, schedule.paused, "was paused, and is not")
        told = f"its last tick was decided on {behind:.1f} s before it was paused"
        slack = slack_s(evidence, schedule.paused_at - BEHIND_S, schedule.paused_at, lambda _: True)
        look.at(schedule.schedule, behind <= BEHIND_S + slack, told)
        late = [each.call for each in _calls(evidence, schedule) if each.stored_at > schedule.paused_at + PAUSED_S]
        look.at(schedule.schedule, not late, f"called after it was paused: {late[:5]}")
    return look.findings()
