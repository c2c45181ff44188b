"""Dict and Queue from programs and containers, through two gateways: what one wrote the other sees, once."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.flows.conftest import FORMS, PROGRAMS, nothing_was_forbidden
from tests.support.platform import Platform

import squall
from squall import exception, session
from squall.config import ServerAddress

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with FORMS["processes"]() as started:
        started.squall("deploy", PROGRAMS / "shared_state.py")
        yield started
        nothing_was_forbidden(started)


@pytest.fixture
def state(client: Platform) -> Iterator[squall.Dict]:
    with squall.Dict.ephemeral() as made:
        yield made


@pytest.fixture
def items(client: Platform) -> Iterator[squall.Queue]:
    with squall.Queue.ephemeral() as made:
        yield made


def test_a_dict_keeps_what_was_put(state: squall.Dict) -> None:
    values = {"text": "é", 1: None, (1, "a"): [1, {2: b"\xff"}], b"bytes": 1.5, "large": bytes(3_000_000)}
    state.update(values)
    state["one"] = 1

    assert {key: state[key] for key in values} == values
    assert dict(state.items()) == {**values, "one": 1}
    assert set(state.keys()) == {*values, "one"}
    assert len(state) == 6
    assert ("one" in state, state.contains("two"), state.get("two"), state.get("two", 2)) == (True, False, None, 2)
    assert (state.pop("one"), state.pop("one", "gone")) == (1, "gone")
    for use in (lambda: state["one"], lambda: state.pop("one"), lambda: state.__delitem__("one")):
        with pytest.raises(KeyError):
            use()
    state["mutable"] = [1]
    state["mutable"].append(2)
    assert state["mutable"] == [1], "what was got is a copy"
    state.clear()
    assert (len(state), list(state.keys())) == (0, [])


def test_more_keys_than_one_page_or_one_write(state: squall.Dict) -> None:
    many = dict.fromkeys(range(1700), "x" * 200)
    state.update(many)
    assert len(state) == 1700
    assert dict(state.items()) == many


def test_of_all_who_put_a_missing_key_one_wins(client: Platform, state: squall.Dict) -> None:
    claim = squall.Function.from_name("shared-state", "claim")
    others = [part.url for part in client.parts_named("gateway")]
    won: list[bool] = []

    def put_through(url: str, number: int) -> None:
        with session.use(ServerAddress(url, client.token)):
            won.append(state.put("threads", number, skip_if_exists=True))

    for number in range(8):  # one after the other changes the address of all: what counts is that both gateways agree
        put_through(others[number % len(others)], number)
    assert sorted(won) == [False] * 7 + [True]
    in_containers = list(claim.starmap([(state, number) for number in range(12)]))
    assert sorted(in_containers) == [False] * 11 + [True]
    assert state["lock"] == in_containers.index(True)


def test_threads_that_race_for_a_key_have_one_winner_and_for_a_pop_too(state: squall.Dict) -> None:
    for attempt in range(5):
        state[f"popped {attempt}"] = 1
        won: list[bool] = []
        popped: list[int] = []

        def race(attempt: int = attempt, won: list[bool] = won, popped: list[int] = popped) -> None:
            won.append(state.put(f"raced {attempt}", 1, skip_if_exists=True))
            popped.append(state.pop(f"popped {attempt}", 0))

        racers = [threading.Thread(target=race) for _ in range(6)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(30)
        assert (sum(won), sum(popped)) == (1, 1)


def test_a_queue_gives_items_once_in_their_order(items: squall.Queue) -> None:
    items.put("a")
    items.put_many([1, 2, 3])
    items.put("other", partition="p")

    assert (items.len(), items.len(partition="p"), items.len(total=True), len(items)) == (4, 1, 5, 4)
    assert list(items.iterate()) == ["a", 1, 2, 3]
    assert items.get() == "a"
    assert items.get_many(10) == [1, 2, 3]
    assert items.get(partition="p") == "other"
    assert (items.get(block=False), items.get_many(3, block=False)) == (None, [])
    items.put_many(list(range(1500)))
    assert [items.get() for _ in range(3)] == [0, 1, 2]
    assert items.get_many(1400) == list(range(3, 1403))
    items.clear(all=True)
    assert items.len(total=True) == 0


def test_waiting_ends_with_an_item_or_with_the_time(items: squall.Queue) -> None:
    with pytest.raises(queue.Empty):
        items.get(timeout=0.2)
    with pytest.raises(queue.Empty):
        items.get_many(3, timeout=0)
    putter = threading.Timer(0.5, lambda: items.put("late"))
    putter.start()
    assert items.get(timeout=30) == "late"
    assert items.get(block=False) is None


def test_a_full_partition_makes_put_wait_or_refuses(items: squall.Queue) -> None:
    items.put_many(list(range(5000)))
    for keywords in ({"block": False}, {"timeout": 0.2}):
        with pytest.raises(queue.Full):
            items.put(1, **keywords)
    items.put("elsewhere", block=False, partition="p")
    taker = threading.Timer(0.5, items.get)
    taker.start()
    items.put("last", timeout=30)
    taker.join()
    assert items.len() == 5000
    assert items.get_many(5000)[-1] == "last"


def test_many_threads_share_requests_and_none_waits_for_anothers_item(state: squall.Dict, items: squall.Queue) -> None:
    got: list[int] = []

    def take() -> None:
        got.append(items.get(timeout=60, partition="late"))

    def use(thread: int) -> None:
        for number in range(15):
            state[thread, number] = number
            items.put((thread, number), partition="work")
            assert state[thread, number] == number
            assert state.pop((thread, number)) == number
            assert items.get(timeout=30, partition="work") is not None

    waiting = [threading.Thread(target=take) for _ in range(4)]
    for each in waiting:
        each.start()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(use, range(12)))
    assert (len(state), items.len(total=True), got) == (0, 0, [])
    for number in range(4):
        items.put(number, partition="late")
    for each in waiting:
        each.join(60)
    assert sorted(got) == [0, 1, 2, 3]


def test_an_item_goes_to_one_of_many_takers_at_two_gateways(client: Platform, items: squall.Queue) -> None:
    items.put_many(list(range(300)), partition="p")
    take = squall.Function.from_name("shared-state", "take")
    calls = [take.spawn(items, 100) for _ in range(6)]
    mine = [item for _ in range(100) if (item := items.get(block=False, partition="p")) is not None]

    taken = [item for call in calls for item in call.get(timeout=60)]
    rest = items.get_many(300, block=False, partition="p")
    assert Counter([*mine, *taken, *rest]) == Counter(range(300))


def test_async_forms_inside_a_container(state: squall.Dict, items: squall.Queue) -> None:
    in_a_loop = squall.Function.from_name("shared-state", "in_a_loop")
    assert in_a_loop.remote(state, items) == [True, "first", ["k"]]


def test_items_go_away_after_their_time(items: squall.Queue) -> None:
    items.put("short", partition_ttl=1)
    items.put("long")
    until = time.monotonic() + 15
    while items.len() > 1 and time.monotonic() < until:
        time.sleep(0.1)
    assert items.get_many(5) == ["long"]


def test_names_are_made_found_listed_and_deleted(client: Platform) -> None:
    made = squall.Dict.from_name("named", create_if_missing=True)
    made["x"] = 1
    assert squall.Dict.from_name("named")["x"] == 1
    assert squall.Dict.from_id(made.object_id)["x"] == 1
    assert "named" in [each.name for each in squall.Dict.objects.list()]
    with pytest.raises(exception.AlreadyExistsError):
        squall.Dict.objects.create("named")
    squall.Dict.objects.create("named", allow_existing=True)
    squall.Dict.objects.delete("named")
    squall.Dict.objects.delete("named", allow_missing=True)
    for use in (lambda: squall.Dict.from_name("named").get("x"), lambda: squall.Dict.objects.delete("named")):
        with pytest.raises(exception.NotFoundError):
            use()
    squall.Dict.objects.create("named")
    assert squall.Dict.from_name("named").get("x") is None, "a new one under the name has nothing of the old one"


def test_an_object_without_a_name_ends_with_its_block(client: Platform) -> None:
    with squall.Queue.ephemeral() as made:
        made.put(1)
    time.sleep(3.5)  # a gateway may know it for three seconds
    with pytest.raises(exception.NotFoundError):
        squall.Queue.from_id(made.object_id).len()


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (lambda d, q: d.put("x", bytes(101 << 20)), exception.RequestSizeError, "more than"),
        (lambda d, q: q.put(bytes(2 << 20)), exception.RequestSizeError, "more than"),
        (lambda d, q: d.put("x", threading.Lock()), exception.SerializationError, "pickled"),
        (lambda d, q: d.put(lambda: 1, 1), exception.SerializationError, "key"),
        (lambda d, q: d.put("x" * 20_000, 1), exception.RequestSizeError, "key"),
        (lambda d, q: d.update({n: n for n in range(10_001)}), exception.RequestSizeError, "10000"),
        (lambda d, q: q.put(1, partition="x" * 65), exception.InvalidError, "64 bytes"),
        (lambda d, q: q.put(1, partition=""), exception.InvalidError, "64 bytes"),
        (lambda d, q: q.put(1, partition_ttl=0), exception.InvalidError, "live"),
        (lambda d, q: q.get(timeout=-1), exception.InvalidError, "timeout"),
        (lambda d, q: q.get_many(0), exception.InvalidError, "1 item"),
        (lambda d, q: q.len(partition="a", total=True), exception.InvalidError, "not both"),
        (lambda d, q: squall.Dict.from_name("a/b"), exception.InvalidError, "not valid"),
        (lambda d, q: squall.Dict.from_id(q.object_id).get("x"), exception.NotFoundError, "there is no"),
        (lambda d, q: squall.Dict.from_id("di-*").get("x"), exception.NotFoundError, "there is no"),
        (lambda d, q: squall.Queue.from_name("nowhere").object_id, exception.ExecutionError, "looked up"),
    ],
)
def test_bad_input_is_refused(
    state: squall.Dict, items: squall.Queue, use: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        use(state, items)  # type: ignore[operator]


def test_the_commands(client: Platform) -> None:
    client.squall("dict", "create", "cli")
    squall.Dict.from_name("cli").update({"a": "text", "b": [1]})
    client.squall("queue", "create", "cli")
    squall.Queue.from_name("cli").put_many(["x", 2])

    assert client.squall("dict", "get", "cli", "a").stdout == "text\n"
    assert "[1]" in client.squall("dict", "items", "cli").stdout
    assert client.squall("queue", "peek", "cli", "5").stdout == "'x'\n2\n"
    assert client.squall("queue", "len", "cli").stdout == "2\n"
    assert "cli" in client.squall("dict", "list").stdout
    refused = client.squall("dict", "clear", "cli", check=False)
    assert "--yes" in refused.stderr
    client.squall("dict", "clear", "cli", "--yes")
    client.squall("queue", "clear", "cli", "--yes")
    missing = client.squall("dict", "get", "cli", "a", check=False)
    assert "Error [not_found]: " in missing.stderr
    client.squall("dict", "delete", "cli", "-y")
    client.squall("queue", "delete", "cli", "-y")
    assert client.squall("queue", "len", "cli", check=False).returncode == 1
