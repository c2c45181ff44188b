"""Volumes: committed versions last, are there in full and in one order, and files are one writer's (I38-I40). Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate

from squall_verify.evidence import Evidence
from squall_verify.invariants.dicts import failures, of_kind
from squall_verify.invariants.verdict import Findings, Looking
from squall_verify.state import CONFLICT, UNKNOWN, Step

FILES_OF_A_GROUP = 3


def _commits(evidence: Evidence, workspace: str) -> list[Step]:
    return [step for step in of_kind(evidence, "volume", "commit") if step.workspace == workspace]


def _workspaces(evidence: Evidence) -> list[str]:
    return sorted({step.workspace for step in of_kind(evidence, "volume")})


def lasting(evidence: Evidence) -> Findings:
    """I38: what a commit that was acknowledged wrote is there in the end; nothing is there that nobody wrote."""
    look = Looking()
    for workspace in _workspaces(evidence):
        commits = _commits(evidence, workspace)
        ends = [step for step in of_kind(evidence, "volume", "final") if step.workspace == workspace and step.done]
        for end in ends:
            there = dict(line.split("=", 1) for line in end.got)
            newest = max((step.version for step in commits if step.done), default=0)
            look.at("version", end.version >= newest, f"{end.version} in the end, and {newest} was acknowledged")
            known = {step.values[0]: step for step in commits}
            for step in commits:
                own = f"own/{step.values[0]}"
                if step.done:
                    look.at(own, own in there, f"version {step.version} was acknowledged, and its file is not there")
                elif step.outcome == CONFLICT:
                    look.at(own, own not in there, "its commit was refused, and its file is there")
            for path, value in there.items():
                if value:
                    look.at(path, value in known, f"has {value!r}, which nobody committed")
                    wanted = path.rpartition("/")[2] if path.startswith("own/") else value
                    look.at(path, value == wanted, f"has the content of {value!r}")
    return look.findings()


def atomic(evidence: Evidence) -> Findings:
    """I39: a look at a version sees all files of its commit or none; versions are in the order of time."""
    look = Looking()
    failures(look, of_kind(evidence, "volume"))
    for workspace in _workspaces(evidence):
        commits = _commits(evidence, workspace)
        _ordered(look, [step for step in commits if step.done])
        for step in of_kind(evidence, "volume", "look"):
            if step.workspace != workspace or not step.done:
                continue
            before = [each for each in commits if each.place == step.place and each.began < step.ended]
            sizes = [line.rpartition("=")[2] for line in step.got]
            whole = len(sizes) in (0, FILES_OF_A_GROUP) and len(set(sizes)) <= 1
            look.at(step.name, whole, f"version {step.version} has {list(step.got)}: not the files of one commit")
            look.at(step.name, sizes[:1] in _possible(before, step.version), f"version {step.version} has {sizes[:1]}")
            seen = max((each.version for each in commits if each.done and each.ended < step.began), default=0)
            look.at(step.name, step.version >= seen, f"saw version {step.version} after {seen} was acknowledged")
    return look.findings()


def _possible(commits: list[Step], version: int) -> list[list[str]]:
    """Sizes that the group's files may have in a version: those of the last commit to it that is known to be in it, or
    of one whose caller had no answer."""
    within = [step for step in commits if step.done and step.version <= version]
    last = max(within, key=lambda step: step.version, default=None)
    return [[step.values[1]] for step in commits if step is last or step.outcome == UNKNOWN] + ([] if last else [[]])


def _ordered(look: Looking, commits: list[Step]) -> None:
    by_version: dict[int, list[Step]] = defaultdict(list)
    for step in commits:
        by_version[step.version].append(step)
    for version, several in by_version.items():
        look.at("version", len(several) == 1, f"{version} was given to {[step.name for step in several]}")
    ended = sorted(commits, key=lambda step: step.ended)
    ends, newest = [step.ended for step in ended], [0, *accumulate((step.version for step in ended), max)]
    for step in commits:
        before = newest[bisect_left(ends, step.began)]
        look.at(step.name, step.version > before, f"made version {step.version} after {before} was acknowledged")


def whole_files(evidence: Evidence) -> Findings:
    """I40: a file is one writer's, and the last one's; a commit that expects a version comes right after it."""
    look = Looking()
    for workspace in _workspaces(evidence):
        commits = _commits(evidence, workspace)
        known = {step.values[0]: step for step in commits}
        for step in commits:
            if step.done and step.values[2]:
                after = f"made version {step.version} and expected {step.values[2]}"
                look.at(step.name, step.version == int(step.values[2]) + 1, after)
        for step in of_kind(evidence, "volume", "read"):
            if step.workspace != workspace or not step.done:
                continue
            group, value = step.place.partition("/")[0], step.got[0]
            over = [each for each in commits if each.place == group and each.done and each.ended < step.began]
            newest = max((each.version for each in over), default=0)
            if not value:
                look.at(step.name, not over, f"{step.place} was not there, and {newest} was acknowledged")
                continue
            writer = known.get(value)
            look.at(step.name, writer is not None and writer.place == group, f"{step.place} had {value!r}")
            if writer is not None and writer.done:
                stale = f"{step.place} had the content of version {writer.version}; {newest} was acknowledged"
                look.at(step.name, writer.version >= newest and writer.began < step.ended, stale)
        _last_wins(look, evidence, workspace, commits)
    return look.findings()


def _last_wins(look: Looking, evidence: Evidence, workspace: str, commits: list[Step]) -> None:
    for end in of_kind(evidence, "volume", "final"):
        if end.workspace != workspace or not end.done:
            continue
        there = dict(line.split("=", 1) for line in end.got)
        for group in {step.place for step in commits}:
            of_group = [step for step in commits if step.place == group]
            last = max((step for step in of_group if step.done), key=lambda step: step.version, default=None)
            allowed = {step.values[0] for step in of_group if step is last or step.outcome == UNKNOWN}
            found = {value for path, value in there.items() if path.startswith(f"{group}/")}
            if last is not None:
                look.at(group, len(found) == 1 and found <= allowed, f"has {sorted(found)}, last was {last.name}")
