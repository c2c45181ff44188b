"""Memory snapshots: what `@enter(snap=True)` made is in every fork, and where that is not safe, in no fork at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.sdk.runner.containers import Workshop, call, images_dir, value, workshop

from squall.spec import GpuRequest, Resources
from squall_gpu_agent.backend import Container, ContainerRequest, StartFailed, StartFailureKind

__all__ = ["images_dir", "workshop"]

pytestmark = pytest.mark.slow

MARKS = """
class parameter:
    __squall_parameter__ = True
    has_default = True
    def __init__(self, default):
        self.default = default
    def __set_name__(self, owner, name):
        self.name = name
def hook(kind):
    def mark(raw):
        raw.__squall_hook__ = kind
        return raw
    return mark
enter, snap = hook("enter"), hook("enter_snap")
"""
GPU = Resources(gpus=(GpuRequest("H100"),))


def request(workshop: Workshop, body: str, **wanted: object) -> ContainerRequest:
    """Containers of a class `C` with a snapshot and the method `m`."""
    files = {"root/marks.py": MARKS, "root/app.py": "from marks import *\n" + body}
    settings = {"use_template": True, "memory_snapshot": True, "is_class": True, "methods": ["m"], "params": {}}
    return workshop.request(files, "C", **{**settings, **wanted})


async def pair(workshop: Workshop, body: str, **wanted: object) -> tuple[Container, Container]:
    """Two containers of it."""
    asked = request(workshop, body, **wanted)
    return await workshop.launch(asked), await workshop.again(asked)


MODEL = """
import os, random
class C:
    scale = parameter(1)
    @snap
    def load(self):
        print("loading")
        self.weights, self.loaded_by, self.calls = [self.scale] * 3, os.getpid(), 0
    @snap
    async def warm(self):
        self.warmed = sum(self.weights)
    @enter
    def to_device(self):
        self.device, self.entered_in = os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()
    def m(self):
        self.calls += 1
        return self.loaded_by, self.entered_in, os.getpid(), self.warmed, self.calls
"""


async def test_forks_have_what_the_snapshot_made_and_run_the_other_hooks_themselves(workshop: Workshop) -> None:
    one, two = await pair(workshop, MODEL)
    assert (one.how, one.why, two.how, two.why) == ("fork", "", "fork", "")
    first, second = value(await call(one, method="m")), value(await call(two, method="m"))
    assert first[0] == second[0] not in (one.pid, two.pid)
    assert (first[1:3], second[1:3]) == ((one.pid, one.pid), (two.pid, two.pid))
    assert (first[3:], second[3:]) == ((3, 1), (3, 1)), "what one container changes, the other does not see"
    assert (workshop.printed(one), workshop.printed(two)) == ("loading\n", "")
    assert "enter.snap" in [phase.name for phase in one.phases]
    assert [phase.name for phase in two.phases] == ["image.ensure", "sandbox.create", "runner.connect", "enter"]


async def test_each_set_of_parameters_has_a_snapshot_of_its_own(workshop: Workshop) -> None:
    asked = request(workshop, MODEL, params={"scale": 1})
    small, large = await workshop.launch(asked), await workshop.again(replace(asked, params={"scale": 5}))
    assert (small.how, large.how) == ("fork", "fork")
    assert [value(await call(each, method="m"))[3] for each in (small, large)] == [3, 15]


async def test_without_a_template_the_hooks_of_the_snapshot_run_in_the_container_first(workshop: Workshop) -> None:
    container = await workshop.launch(request(workshop, MODEL, use_template=False))
    loaded_by, entered_in, pid, warmed, _ = value(await call(container, method="m"))
    assert (loaded_by, entered_in, warmed) == (pid, pid, 3)
    assert [phase.name for phase in container.phases][-2:] == ["enter.snap", "enter"]


SEES_DEVICES = """
import os
seen_at_import = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("NVIDIA_VISIBLE_DEVICES")
class C:
    @snap
    def load(self):
        self.seen_in_snapshot = os.environ.get("CUDA_VISIBLE_DEVICES")
    @enter
    def start(self):
        self.seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    def m(self):
        return seen_at_import, self.seen_in_snapshot, self.seen
"""


async def test_with_gpus_the_template_sees_no_device_and_each_fork_its_own(workshop: Workshop) -> None:
    asked = replace(request(workshop, SEES_DEVICES, resources=GPU), gpu_env={"CUDA_VISIBLE_DEVICES": "GPU-1"})
    one = await workshop.launch(asked)
    two = await workshop.again(replace(asked, gpu_env={"CUDA_VISIBLE_DEVICES": "GPU-2"}))
    assert (one.how, one.why, two.how) == ("fork", "", "fork")
    assert value(await call(one, method="m")) == (("", "void"), "", "GPU-1")
    assert value(await call(two, method="m")) == (("", "void"), "", "GPU-2")


async def test_without_a_snapshot_code_with_gpus_sees_its_device_while_it_is_imported(workshop: Workshop) -> None:
    asked = request(workshop, SEES_DEVICES, resources=GPU, memory_snapshot=False)
    container = await workshop.launch(replace(asked, gpu_env={"CUDA_VISIBLE_DEVICES": "GPU-1"}))
    assert container.how == "fresh"
    assert "enable_memory_snapshot=True" in container.why
    at_import, _, at_enter = value(await call(container, method="m"))
    assert (at_import[0], at_enter) == ("GPU-1", "GPU-1")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("threading.Thread(target=threading.Event().wait, daemon=True, name='pump').start()", "(pump)"),
        ("self.pool = concurrent.futures.ThreadPoolExecutor(1); self.pool.submit(int)", "1 thread running"),
        ("self.s = socket.socket()", "socket:["),
        ("self.p = subprocess.Popen(['sleep', '60'])", "1 child process"),
        ("self.lock = multiprocessing.Lock()", "memory that all forks would write to"),
        ("self.shared = mmap.mmap(-1, 4096)", "memory that all forks would write to"),
    ],
    ids=["thread", "executor", "socket", "child", "semaphore", "shared-memory"],
)
async def test_a_snapshot_that_cannot_be_forked_is_not_and_the_reason_is_told(
    workshop: Workshop, statement: str, words: str
) -> None:
    container = await workshop.launch(
        request(
            workshop,
            f"""
import concurrent.futures, mmap, multiprocessing, os, socket, subprocess, threading
class C:
    @snap
    def load(self):
        {statement}
        self.loaded_by = os.getpid()
    def m(self):
        return self.loaded_by, os.getpid()
""",
        )
    )
    assert container.how == "fresh"
    assert container.why.startswith("import or @enter(snap=True) left")
    assert words in container.why
    loaded_by, pid = value(await call(container, method="m"))
    assert loaded_by == pid


async def test_an_error_in_a_hook_of_the_snapshot_is_the_users(workshop: Workshop) -> None:
    with pytest.raises(StartFailed) as caught:
        await workshop.launch(
            request(workshop, "class C:\n  @snap\n  def load(self): raise KeyError('w')\n  def m(self): pass")
        )
    assert (caught.value.kind, caught.value.type_name) == (StartFailureKind.USER_CODE, "KeyError")
    assert "load" in caught.value.traceback


async def test_random_numbers_differ_in_forks_of_one_snapshot(workshop: Workshop) -> None:
    one, two = await pair(
        workshop,
        """
import random, uuid
class C:
    @snap
    def load(self): self.first = random.random()
    def m(self): return self.first, random.random(), str(uuid.uuid4())
""",
    )
    first, second = value(await call(one, method="m")), value(await call(two, method="m"))
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]
