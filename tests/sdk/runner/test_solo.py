"""The main thread that reads its own inputs: order, and frames that come while an input runs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from squall_runner import frames
from squall_runner.channel import Channel
from squall_runner.frames import Frame, ToRunner
from squall_runner.interrupt import Interrupter
from squall_runner.solo import PARK_ROUNDS, WATCH_S, SoloMain

PATIENCE_S = 10.0


class Desk:
    """A `SoloMain` in a thread of its own, and the agent's end of its socket."""

    def __init__(self) -> None:
        self.agent, runners = socket.socketpair()
        self.main = SoloMain(Channel(runners, Interrupter()))
        self.done: list[int] = []
        self.cancelled = threading.Event()
        self.thread = threading.Thread(target=self.main.serve, args=(self.on_frame,), daemon=True)
        self.thread.start()

    def on_frame(self, frame: Frame) -> None:
        if frame.kind == ToRunner.INPUT:
            self.main.call(lambda: self.run(int(frame.meta["index"]), wait=frame.meta["method"] == "wait"))
        elif frame.kind == ToRunner.CANCEL:
            self.cancelled.set()
        elif frame.kind == ToRunner.STOP:
            self.main.finish()

    def run(self, index: int, *, wait: bool) -> None:
        if wait and not self.cancelled.wait(PATIENCE_S):
            return  # the frame never came: `done` will lack it
        self.done.append(index)

    def send(self, *found: tuple[int, dict[str, object]]) -> None:
        self.agent.sendall(b"".join(frames.encode(kind, meta) for kind, meta in found))

    def stopped(self) -> list[int]:
        self.send((ToRunner.STOP, {}))
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.done


@pytest.fixture
def desk() -> Iterator[Desk]:
    found = Desk()
    yield found
    found.agent.settimeout(0)


def test_inputs_run_in_their_order(desk: Desk) -> None:
    desk.send(*((ToRunner.INPUT, {"index": index}) for index in range(100)))
    assert desk.stopped() == list(range(100))


def test_a_frame_reaches_an_input_that_runs(desk: Desk) -> None:
    desk.send((ToRunner.INPUT, {"index": 0, "method": "wait"}))
    desk.send((ToRunner.CANCEL, {}))
    assert desk.cancelled.wait(PATIENCE_S)
    assert desk.stopped() == [0]


def test_also_after_the_second_thread_has_gone_to_sleep(desk: Desk) -> None:
    desk.send((ToRunner.INPUT, {"index": 0}))
    threading.Event().wait(WATCH_S * (PARK_ROUNDS + 4))
    desk.send((ToRunner.INPUT, {"index": 1, "method": "wait"}))
    desk.send((ToRunner.CANCEL, {}))
    assert desk.stopped() == [0, 1]


def test_an_input_that_was_read_beside_another_runs_after_it(desk: Desk) -> None:
    desk.send((ToRunner.INPUT, {"index": 0, "method": "wait"}))
    desk.send((ToRunner.CANCEL, {}), (ToRunner.INPUT, {"index": 1}))
    assert desk.stopped() == [0, 1]


def test_a_stop_waits_for_the_input_that_runs(desk: Desk) -> None:
    desk.send((ToRunner.INPUT, {"index": 0, "method": "wait"}), (ToRunner.CANCEL, {}), (ToRunner.STOP, {}))
    desk.thread.join(PATIENCE_S)
    assert desk.done == [0]
