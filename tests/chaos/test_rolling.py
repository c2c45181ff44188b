"""An upgrade, as far as processes go: each service is stopped and started again, one after the other, under load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from signal import SIGTERM
from threading import Event

import pytest
from tests.chaos.conftest import PROGRAMS, started
from tests.chaos.victims import Effects, function, results
from tests.support.platform import Platform, eventually

ORDER = ("scheduler", "autoscaler", "builder", "gateway-0", "gateway-1", "gpu-agent-0", "gpu-agent-1")
"""docs/howto/upgrade.md says it the same way."""
AT_ONCE, INPUTS = 5, 40


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    """Of this module alone: with calls of other tests going on, what is counted here would not be of here alone."""
    with started() as platform:
        platform.squall("deploy", PROGRAMS / "work.py")
        yield platform


def test_each_service_is_restarted_without_a_lost_or_doubled_call(platform: Platform, effects: Effects) -> None:
    evaluate, file, values, over = function("evaluate"), str(effects.file), count(), Event()

    def taken(number: int) -> list[int]:
        return list(islice(values, number))

    def remote() -> list[object]:
        return [evaluate.remote(file, value) for value in taken(1)]

    def spawned() -> list[object]:
        return results([evaluate.spawn(file, value) for value in taken(AT_ONCE)])

    def mapped() -> list[object]:
        return list(evaluate.map([file] * INPUTS, taken(INPUTS)))

    def keep(calling: Callable[[], list[object]]) -> list[object]:
        answers: list[object] = []
        while not over.is_set():
            answers += calling()
        return answers

    with ThreadPoolExecutor(3) as threads:
        callers = [threads.submit(keep, calling) for calling in (remote, spawned, mapped)]
        try:
            for name in ORDER:
                before = len(effects.lines())
                platform.restarted(platform.signal(name, SIGTERM), within_s=60)
                eventually(platform.ready, within_s=60, what=f"not ready after {name} was started again")
                eventually(lambda: len(effects.lines()) > before, within_s=60, what="calls do not go on")  # noqa: B023
        finally:
            over.set()
    answers = [answer for caller in callers for answer in caller.result()]

    made = next(values)
    assert sorted(answers) == [(value, value * value) for value in range(made)]  # type: ignore[type-var]
    assert Counter(map(int, effects.lines())) == Counter(range(made)), "a call was lost, or ran twice"
