"""The order of a generator's items: each once, in order, new attempts told, losses noticed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from squall_gateway.policy.item_order import Give, ItemOrder, Lost, Restart, Skip


def feed(*items: tuple[str, int]) -> list[object]:
    order = ItemOrder()
    return [order.on_item(attempt, seq) for attempt, seq in items]


def test_items_in_order_are_given() -> None:
    assert feed(("1-a", 0), ("1-a", 1)) == [Give(), Give()]


def test_a_repeat_is_skipped_and_a_gap_is_a_loss() -> None:
    assert feed(("1-a", 0), ("1-a", 0), ("1-a", 3)) == [Give(), Skip("a repeat"), Lost(1, 2)]


def test_the_first_item_of_a_stream_must_be_the_first_of_its_attempt() -> None:
    assert feed(("1-a", 2)) == [Lost(0, 1)]


def test_a_newer_attempt_restarts_and_an_older_one_is_ignored() -> None:
    order = ItemOrder()
    order.on_item("2-b", 0)

    assert order.on_item("1-a", 1) == Skip("an earlier attempt")
    assert order.on_item("10-c", 0) == Restart("10-c")
    assert order.on_item("10-c", 0) == Give()
    assert order.next_seq == 1


def test_what_is_missing_at_the_end_is_what_was_yielded_and_not_given() -> None:
    order = ItemOrder()
    order.on_item("1-a", 0)

    assert order.missing("1-a", 1) is None
    assert order.missing("1-a", 3) == Lost(1, 2)
    assert order.missing("2-b", 2) == Lost(0, 1)
    assert order.missing("2-b", 0) is None


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=40))
def test_what_is_given_of_an_attempt_is_always_gapless_from_zero(items: list[tuple[int, int]]) -> None:
    order, given_of = ItemOrder(), dict[str, list[int]]()
    for number, seq in items:
        attempt = f"{number}-x"
        decision = order.on_item(attempt, seq)
        if isinstance(decision, Restart):
            decision = order.on_item(attempt, seq)
        if isinstance(decision, Give):
            given_of.setdefault(attempt, []).append(seq)
    for seqs in given_of.values():
        assert seqs == list(range(len(seqs)))
