"""The arithmetic of the peers benchmark: percentiles, rates over rounds, ratios, cells cut short or missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.peers.figures import Figure, figure, percentile, speed
from benchmarks.peers.peers import PEERS
from benchmarks.peers.record import Record
from benchmarks.peers.table import Table, cell
from benchmarks.peers.works import WORKS, Sample, sized


def sample(engine: str = "squall", work: str = "fan_out", round_number: int = 0, **known: object) -> Sample:
    return Sample(engine=engine, work=work, round=round_number, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)], ids=["p50", "p99", "max", "least"]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(part: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), part) == expected


def test_a_rate_is_the_median_of_its_rounds_and_a_latency_is_over_all_of_them() -> None:
    rounds = [
        sample(round_number=n, wanted=10, done=10, seconds=seconds, cpu_s=0.1, latencies_ms=(float(n),) * 10)
        for n, seconds in enumerate([1.0, 2.0, 10.0])
    ]

    made = figure(rounds)

    assert (made.rate, made.lowest, made.highest) == (5.0, 1.0, 10.0)
    assert (made.p50_ms, made.p99_ms, made.done) == (1.0, 2.0, 30)
    assert made.cpu_ms == pytest.approx(10.0)


def test_twice_as_fast_is_two_for_latencies_and_for_rates() -> None:
    fast, slow = Figure(p50_ms=2.0, rate=100.0), Figure(p50_ms=4.0, rate=50.0)

    assert speed(fast, slow, latency=True) == speed(fast, slow, latency=False) == 2.0
    assert speed(slow, fast, latency=True) == speed(slow, fast, latency=False) == 0.5
    assert speed(fast, Figure(skipped="not run"), latency=True) is None


def test_a_cell_says_that_it_was_cut_short_or_has_fewer_calls_or_why_there_is_none() -> None:
    reference = Figure(rate=100.0, lowest=100.0, highest=100.0, done=5000, wanted=5000)
    slow = Figure(rate=10.0, lowest=10.0, highest=10.0, done=300, wanted=1000)

    assert cell(slow, reference, latency=False, most=5000).endswith("of 1,000 calls; time limit: 300 of 1,000")
    assert "**0.10**" in cell(slow, reference, latency=False)
    assert cell(figure([sample(skipped="not run: no wheel")]), reference, latency=False) == "not run: no wheel"


def test_a_round_that_failed_does_not_hide_one_that_did_not() -> None:
    made = figure([sample(skipped="failed"), sample(round_number=1, wanted=5, done=5, seconds=1.0)])

    assert (made.rate, made.skipped) == (5.0, "")


def test_rounds_share_what_is_counted_once_and_repeat_the_rest() -> None:
    counts = {work.name: work.count for work in sized(WORKS, rounds=2, slow=False, at_most=None)}
    few = {work.name: work.count for work in sized(WORKS, rounds=2, slow=True, at_most=200)}

    assert (counts["sequential"], counts["fan_out"], counts["enqueue"]) == (2500, 5000, 10_000)
    assert (few["sequential"], few["fan_out"]) == (100, 200)


def test_the_table_has_a_column_for_each_engine_and_a_row_for_each_work() -> None:
    peers = PEERS[:3]
    done = [
        sample(peer.name, work.name, number, wanted=100, done=100, seconds=1.0, latencies_ms=(1.0,) * 100)
        for peer in peers
        for work in WORKS
        for number in range(2)
    ]
    deep = sample("squall", "depth", wanted=5, done=5, seconds=1.0, latencies_ms=(1.0,) * 5, depth=1_000_000)

    rows = [row for row in Table(peers, [*done, deep]).render().splitlines() if row.startswith("|")]

    assert {row.count(" | ") for row in rows if not row.startswith("|---")} == {3}
    assert any(row.startswith("| no-op, one after the other, 200 calls |") for row in rows)
    assert any(row.startswith("| fan-out of 100 no-ops |") for row in rows)
    assert any(row.startswith("| enqueue with 1,000,000 queued |") and "not run" in row for row in rows)


def test_an_interrupted_run_goes_on_where_it_was_unless_something_else_is_measured(tmp_path: Path) -> None:
    file, about = tmp_path / "run.jsonl", {"commit": "a"}
    Record(file, about).add("ray", 0, [sample("ray", latencies_ms=(1.0, 2.0), notes={"version": "ray 1"})])
    with file.open("a") as half_written:
        half_written.write('{"engine": "dask", "rou')

    again = Record(file, about)
    again.add("dask", 0, [])
    last = Record(file, about)
    other = Record(file, {"commit": "b"})

    assert last.done == {("ray", 0), ("dask", 0)}
    assert last.samples == [sample("ray", latencies_ms=(1.0, 2.0), notes={"version": "ray 1"})]
    assert other.done == set()
