"""The Markdown table: one row per work, one column per engine, and each engine's speed in units of squall's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.peers.figures import Figure, figure, speed
from benchmarks.peers.peers import Peer
from benchmarks.peers.works import DEPTH, WORKS, Sample, Work

REFERENCE = "squall"
LEGEND = (
    "Bold: speed in units of squall's (fsync always), from p50 or rate; above 1 is faster than squall. "
    "Latencies over all rounds, rates the median of the rounds with the lowest and highest; "
    "CPU: all processes of the engine and its caller, per call."
)


class Table:
    """Built from everything that was measured."""

    def __init__(self, peers: Sequence[Peer], samples: Iterable[Sample]) -> None:
        self._peers = peers
        self._samples = list(samples)

    def render(self) -> str:
        """All of it."""
        head = ["| |", "|---|"]
        for peer in self._peers:
            head[0] += f" {peer.title} |"
            head[1] += "---|"
        rows = [
            self._row("version", [self._note(peer, "version") for peer in self._peers]),
            self._row("a call that was handed over survives", [self._survives(peer) for peer in self._peers]),
            *(self._work_row(work) for work in WORKS),
            *(self._work_row(DEPTH, depth) for depth in self._depths()),
        ]
        return "\n".join([*head, *rows, "", LEGEND])

    def _row(self, title: str, cells: Iterable[str]) -> str:
        return f"| {title} | " + " | ".join(cells) + " |"

    def _work_row(self, work: Work, depth: int = 0) -> str:
        figures = [self._figure(peer.name, work, depth) for peer in self._peers]
        reference = self._figure(REFERENCE, work, depth)
        most = max(self._wanted(peer.name, work, depth) for peer in self._peers)
        cells = [cell(f, reference, latency=work.latency, most=most) for f in figures]
        return self._row(work.title_of(depth or self._whole_count(work, most)), cells)

    def _wanted(self, engine: str, work: Work, depth: int) -> int:
        return sum(s.wanted for s in self._samples if (s.engine, s.work, s.depth) == (engine, work.name, depth))

    def _whole_count(self, work: Work, most: int) -> int:
        """Of one run: rounds repeat what is not shared between them."""
        rounds = {sample.round for sample in self._samples if sample.work == work.name}
        return most if work.shared or not rounds else most // len(rounds)

    def _figure(self, engine: str, work: Work, depth: int) -> Figure:
        found = [s for s in self._samples if (s.engine, s.work, s.depth) == (engine, work.name, depth)]
        made = figure(found)
        if work.name == "enqueue" or not work.latency:
            return made
        return replace(made, rate=None)

    def _depths(self) -> list[int]:
        return sorted({sample.depth for sample in self._samples if sample.depth})

    def _note(self, peer: Peer, name: str) -> str:
        notes = [s.notes[name] for s in self._samples if s.engine == peer.name and name in s.notes]
        return notes[-1] if notes else "-"

    def _survives(self, peer: Peer) -> str:
        said = self._note(peer, "durability")
        return peer.survives if said == "-" else f"{peer.survives}; it says: {said}"


def cell(of: Figure, reference: Figure, *, latency: bool, most: int = 0) -> str:
    """One cell: figure, speed against squall, CPU; says when it is of fewer calls than `most`, or a limit ended it."""
    if of.skipped:
        return of.skipped.replace("|", "\\|")
    parts = []
    if of.rate is not None:
        spread = f" ({of.lowest:,.0f} to {of.highest:,.0f})" if round(of.lowest) != round(of.highest) else ""
        parts.append(f"{of.rate:,.0f}/s{spread}")
    if of.p50_ms is not None and of.p99_ms is not None:
        parts.append(f"p50 {of.p50_ms:.2f} ms, p99 {of.p99_ms:.2f} ms")
    ratio = speed(of, reference, latency=latency)
    if ratio is not None:
        parts.append(f"**{ratio:.2f}**")
    parts.append(f"CPU {of.cpu_ms:.2f} ms")
    if of.wanted < most:
        parts.append(f"of {of.wanted:,} calls")
    if of.cut_short:
        parts.append(f"time limit: {of.done:,} of {of.wanted:,}")
    return "; ".join(parts)
