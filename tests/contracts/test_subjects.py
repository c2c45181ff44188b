"""The subject grammar: what is built can be parsed, and filters match what they promise."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall import ids
from squall.errors import InvalidError
from squall_contracts import subjects
from squall_contracts.topology import build

tokens = st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True)


def matches(pattern: str, subject: str) -> bool:
    """NATS matching of one filter, for the test only."""
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, found = wanted[:-1], found[: len(wanted) - 1]
    return len(wanted) == len(found) and all(w in ("*", f) for w, f in zip(wanted, found, strict=True))


@given(region=tokens, pool=tokens, index=st.integers(0, 10**6), shards=st.integers(1, 16))
def test_call_subject_parses_back(region: str, pool: str, index: int, shards: int) -> None:
    call = ids.new_call_id(shards)
    subject = subjects.call(region, pool, call, index)
    assert subjects.parse_call(subject) == subjects.CallSubject(region, ids.shard_of(call), pool, call, index)
    assert re.fullmatch(r"[a-z0-9.-]+", subject)


@given(region=tokens, pool=tokens, shards=st.integers(1, 16))
def test_filters_match_the_subjects_they_are_for(region: str, pool: str, shards: int) -> None:
    call = ids.new_call_id(shards)
    subject = subjects.call(region, pool, call, 7)
    assert matches(subjects.calls_of(region, pool, call), subject)
    assert matches(subjects.calls_of_pool(region, ids.shard_of(call), pool), subject)
    assert matches(subjects.arrived_at_pool(region, pool), "arrived." + subject.split(".", 1)[1])
    assert matches(subjects.results_of(region, "ws", call), subjects.result(region, "ws", call, 7))


def test_every_stream_carries_its_region_in_every_subject() -> None:
    topology = build(region="eu-1", shards=4, replicas=3)
    for stream in topology.streams:
        assert stream.subjects or stream.sources
        for subject in stream.subjects:
            assert subject.split(".")[1] == "eu-1", stream.name
        assert stream.max_consumers > 0  # the server's own default is 1,000


def test_no_two_streams_take_the_same_subject() -> None:
    taken = [s for stream in build(shards=16).streams for s in stream.subjects]
    assert len(taken) == len(set(taken))


def test_what_must_survive_a_server_has_the_replicas_asked_for() -> None:
    replicas = {s.name: s.replicas for s in build(region="r", shards=1, replicas=3).streams}
    assert replicas["JOURNAL_r_00"] == replicas["RESULTS_r_00"] == replicas["ATTEMPTS_r_00"] == 3
    assert replicas["WORK_r_00"] == 1  # a projection that can be rebuilt


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "fc-",
        "fc-0",
        "ab-01m806gy9p80mq67vgcdfb1x01",
        "fc-01m806gy9p80mq67vgcdfb1x0a",
        "fc-01m806gy9p80mq67vgcdfb1x.1",
    ],
)
def test_a_malformed_call_id_is_refused(bad: str) -> None:
    with pytest.raises(InvalidError, match="not a call id"):
        ids.shard_of(bad)


def test_call_ids_sort_by_creation() -> None:
    made = [ids.new_call_id(4) for _ in range(3)]
    assert [ids.created_at(i) for i in made] == sorted(ids.created_at(i) for i in made)
