"""Forks that enter slots, and what there is when one of them comes to nothing. Without a launcher: see tests/docker."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from squall_gpu_agent.backend import NoTemplate
from squall_gpu_agent.backends.control import Control
from squall_gpu_agent.backends.gvisor.restoring import Restoring
from squall_gpu_agent.backends.launch import needs_exec
from squall_gpu_agent.backends.process_starter import Ends
from squall_gpu_agent.backends.process_template import ForkFailed, ProcessTemplate
from squall_gpu_agent.backends.sandbox import slots
from squall_gpu_agent.backends.sandbox.container import SandboxContainer
from squall_gpu_agent.backends.sandbox.forks import Ahead, Fork
from squall_gpu_agent.backends.sandbox.launcher import Launcher
from squall_gpu_agent.backends.sandbox.slots import LauncherLink, Slot
from squall_gpu_agent.backends.sandbox.words import FromLauncher, SlotPlan
from squall_gpu_agent.backends.template_pool import TemplatePool
from squall_gpu_agent.pipes import Pipes
from squall_gpu_agent.runner_link import RunnerLink
from squall_isolation.cgroups import Group
from squall_runner import template
from squall_runner.frames import Decoder

PLAN = SlotPlan(
    slot="sb-1",
    hostname="sb-1",
    ids=1000,
    layers=[],
    binds=[],
    files={},
    folder="/nonexistent",
    writable_mib=1,
    shared_memory_mib=1,
    open_files=64,
    cgroups=[],
)
PID = 4_000_000
"""Of nobody."""


class Parent:
    """One whose forks end as the test says."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.discarded: list[Slot] = []

    async def fork_into(self, fork: Fork) -> int:
        return await asyncio.shield(self.answer)

    def discard(self, slot: Slot) -> None:
        self.discarded.append(slot)


class NoLauncher:
    """Does nothing, and says what it was asked for."""

    def __init__(self) -> None:
        self.killed: list[Slot] = []
        self.released: list[Slot] = []

    def kill(self, slot: Slot) -> None:
        self.killed.append(slot)

    def release(self, slot: Slot) -> None:
        self.released.append(slot)


def new_slot(name: str = "sb-1", launcher: NoLauncher | None = None) -> Slot:
    owner = cast("LauncherLink", launcher or NoLauncher())
    return Slot(PLAN._replace(slot=name), Group({}, {}), Path("/nonexistent"), owner)


def opened() -> set[str]:
    """Descriptors of this process."""
    with os.scandir("/proc/self/fd") as entries:
        listing = {entry.name for entry in entries}
    return {name for name in listing if os.path.lexists(f"/proc/self/fd/{name}")}


async def rounds() -> None:
    """What is to be called is called."""
    for _ in range(5):
        await asyncio.sleep(0)


# --- a fork that is refused ---


async def test_the_end_of_a_refused_fork_and_of_its_slot_is_not_the_containers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("squall_gpu_agent.backends.sandbox.container.REPORTED_S", 0.0)
    nobody, parent = NoLauncher(), Parent()
    link = RunnerLink("ct-1", Path("/nonexistent"), Path("/nonexistent"), lambda _: None)
    container = SandboxContainer("ct-1", link)
    fork = Fork.in_new_slot(parent, lambda: new_slot(launcher=nobody))
    container.prepare(fork.slot)
    loop = asyncio.get_running_loop()
    loop.call_later(0, fork.exited, 9)
    loop.call_later(0, fork.slot.ended.set_result, None)
    loop.call_later(0.01, parent.answer.set_exception, ForkFailed("the fork has kept capabilities"))
    with pytest.raises(ForkFailed, match="kept capabilities"):
        await container.become(fork)
    other = new_slot("sb-2")
    container.move(other)
    fork.exited(9)  # a second word of it, late
    await rounds()
    assert not container._status_known
    assert nobody.killed == nobody.released == [fork.slot]
    other.ended.set_result(0)
    await rounds()
    assert container._status_known
    fork.ends.close()


async def test_a_container_is_killed_by_the_launcher_that_has_its_slot() -> None:
    """Which is not that of the backend when its start began, if that one has ended meanwhile."""
    ended, other = NoLauncher(), NoLauncher()
    link = RunnerLink("ct-1", Path("/nonexistent"), Path("/nonexistent"), lambda _: None)
    container = SandboxContainer("ct-1", link)
    before, after = new_slot("sb-1", ended), new_slot("sb-2", other)
    container.prepare(before)
    container.move(after)
    container.pid = PID
    container.kill()
    assert ended.killed == ended.released == [before]
    assert other.killed == [after]


async def test_the_end_of_a_fork_that_was_taken_is_told_however_early_it_came() -> None:
    parent, ends = Parent(), list[int | None]()
    fork = Fork.in_new_slot(parent, new_slot)
    fork.exited(7)
    parent.answer.set_result(PID)
    assert await fork.taken(ends.append) == PID
    assert ends == [7]
    fork.ends.close()


async def test_a_fork_ahead_that_is_refused_does_not_wait_to_be_taken() -> None:
    parent = Parent()
    ahead = Ahead(parent, new_slot)
    ahead.begin()
    fork = ahead.fork
    assert fork is not None
    parent.answer.set_exception(ForkFailed("the fork has more than one thread"))
    await rounds()
    assert ahead.fork is None
    assert parent.discarded == [fork.slot]
    ahead.close()


async def test_who_has_the_old_ends_hears_and_says_nothing_more() -> None:
    before, heard = opened(), list[str]()
    pipes = Pipes(lambda _stream, text: heard.append(text))
    ends = Ends(pipes)
    refused = [os.dup(each) for each in ends.theirs]  # a process that was forked with them, and lives
    ends.renew(pipes)
    ends.ours.send(b"SETUP with a secret")
    assert os.read(refused[0], 100) == b""
    with pytest.raises(BrokenPipeError):
        os.write(refused[1], b"not the container's")
    os.write(ends.theirs[1], b"its own")
    assert os.read(ends.theirs[0], 100) == b"SETUP with a secret"
    pipes.close()
    assert heard == ["its own"]
    for each in refused:
        os.close(each)
    ends.close()
    assert opened() == before


# --- what cannot be had ---


async def test_a_frame_whose_descriptors_cannot_be_copied_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    control = Control(ours, lambda _: None, lambda: None)
    before = opened()
    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", failing_after(os.dup, 2))
        with pytest.raises(OSError, match="Too many"):
            control.send(1, {}, [0, 1, 2])
    assert opened() == before
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    control.close()
    theirs.close()


async def test_namespaces_of_a_slot_that_ends_meanwhile_leave_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    slot, before = new_slot(), opened()
    slot.init = os.getpid()
    monkeypatch.setattr(os, "open", failing_after(os.open, 3))
    with pytest.raises(OSError, match="Too many"):
        slot.namespaces()
    monkeypatch.undo()
    assert opened() == before


async def test_what_cannot_be_taken_away_of_a_slot_does_not_keep_the_rest(tmp_path: Path) -> None:
    folder, group = tmp_path / "slot", tmp_path / "group"
    folder.mkdir()
    group.mkdir()
    slot = Slot(
        PLAN._replace(folder=str(folder)),
        Group({"memory": group}, {"memory": 2}),
        folder,
        cast("LauncherLink", NoLauncher()),
    )
    done: list[int] = []

    def fail() -> None:
        raise OSError(16, "the link is busy")

    slot.on_removed += [fail, lambda: done.append(1)]
    slots._take_away(slot)
    assert done == [1]
    assert not folder.exists()
    assert not group.exists()


def test_a_launcher_with_too_many_files_open_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    standing = Launcher(theirs, "/nonexistent")
    before = opened()

    def refused(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", refused)
    standing._make(PLAN)
    (frame,) = Decoder().feed(ours.recv(1 << 16))
    assert (frame.kind, frame.meta["slot"]) == (FromLauncher.NOT_MADE, PLAN.slot)
    assert "Too many" in frame.meta["message"]
    assert opened() == before
    for each in (standing._wake_read, standing._wake_write):
        os.close(each)
    ours.close()
    theirs.close()


class NoWay:
    """Into a slot that has ended."""

    def open(self) -> None:
        raise OSError(errno.EINVAL, "setns: Invalid argument")

    def close(self) -> None:
        raise AssertionError("it was not opened")


def test_a_slot_that_cannot_be_entered_leaves_nothing_open_in_what_forks() -> None:
    forks, before = cast("Any", object.__new__(template.Forks)), opened()
    with pytest.raises(OSError, match="setns"):
        forks._arrived(template.Fork("1", [], NoWay()), NoWay())
    assert opened() == before


# --- bare interpreters and templates ---


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LOCPATH", "LANGUAGE", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_is_read_before_a_fork_learns_it_needs_an_interpreter_of_its_own(name: str) -> None:
    assert needs_exec({name: "x"})
    assert not needs_exec({f"MY_{name}": "x"})


class Template(ProcessTemplate):
    """At the other end of whose socket is the test."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        super().__init__("key", ours, "template", lambda _: None)


async def test_all_who_wait_for_a_template_that_is_not_made_are_told_of_that_one_try() -> None:
    pool, tries = TemplatePool[Template](2), list[int]()
    go_on = asyncio.Event()

    async def make() -> NoTemplate:
        tries.append(1)
        await go_on.wait()
        return NoTemplate(reason=f"it did not start ({len(tries)})")

    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(pool.get("key", make)) for _ in range(4)]
        await rounds()
        go_on.set()
    reasons = {found.reason for task in waiting if isinstance(found := task.result(), NoTemplate)}
    assert reasons == {"it did not start (1)"}
    again = await pool.get("key", make)
    assert isinstance(again, NoTemplate)
    assert again.reason == "it did not start (2)"  # it is not for ever


async def test_a_template_that_ended_before_it_was_kept_is_made_again() -> None:
    pool = TemplatePool[Template](2)

    async def make() -> Template:
        made = Template()
        if not ended:
            ended.append(made)
            made.close()
            made.theirs.close()
        return made

    ended: list[Template] = []
    assert await pool.get("key", make) is ended[0]
    found = await pool.get("key", make)
    assert isinstance(found, Template)
    assert found is not ended[0]
    assert pool.all() == [found]
    pool.kill_all()
    found.theirs.close()


def failing_after(real: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Works so often."""
    calls: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > count:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize("ends", [Ends, Restoring])
def test_ends_that_cannot_all_be_had_leave_nothing_open(ends: Callable[[], object]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = sorted(os.listdir("/proc/self/fd"), key=int)
    first = os.dup(0)  # the lowest that is free
    os.close(first)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + 5, hard))  # a pair of sockets, a pipe, and one more
    try:
        with pytest.raises(OSError, match="Too many open files"):
            ends()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(os.listdir("/proc/self/fd"), key=int) == before
