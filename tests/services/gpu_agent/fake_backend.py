"""A backend without processes: containers run coroutines that a test gives them. For what needs control of timing.

Passes the same contract test as the real ones where that makes sense; user code is `async (container, request) -> End`.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from squall.spec import Encoding, ImageSpec
from squall_gpu_agent.backend import (
    COMMIT_S,
    EXIT_GRACE_S,
    Capabilities,
    ContainerRequest,
    End,
    Exit,
    Failed,
    FailureKind,
    InputRequest,
    Isolation,
    Item,
    NotBegun,
    NoTemplate,
    OnBegin,
    OnItem,
    OnLog,
    OnText,
    Output,
    Phase,
    Root,
)
from squall_gpu_agent.line import Given, Line
from squall_images.eviction import Freed, Unwanted

NOW_NS = 1_700_000_000_000_000_000
Program = Callable[["FakeContainer", InputRequest], Awaitable[End]]


def output(payload: bytes = b"", *, path: Path | None = None, items: int = 0) -> Output:
    """The code returned these bytes."""
    return Output(
        encoding=Encoding.PICKLE,
        payload=None if path else payload,
        path=path,
        size=path.stat().st_size if path else len(payload),
        items=items,
        started_ns=NOW_NS,
        ended_ns=NOW_NS,
        spans=(Phase("user code", NOW_NS, 1000),),
    )


def failed(message: str = "boom", kind: FailureKind = FailureKind.USER) -> Failed:
    """The code raised."""
    return Failed(
        kind=kind, type_name="ValueError", module="builtins", message=message, traceback="...", pickled=b"pickled"
    )


class FakeContainer:
    """One container: `how`, `phases` and so on as the protocol says, plus what tests look at."""

    def __init__(self, request: ContainerRequest, program: Program, on_log: OnLog) -> None:
        self.request = request
        self.on_log = on_log
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="squall-fake-"))
        self._tasks: dict[tuple[str, int], asyncio.Task[End]] = {}
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.line = Line(asyncio.get_running_loop(), self._ask_back)
        self.items: dict[tuple[str, int], OnItem | None] = {}
        self.credits: dict[tuple[str, int], int] = {}
        self.requests: list[InputRequest] = []
        self.ignores_cancel = False
        self.most_at_once = 0

    @property
    def id(self) -> str:
        return self.request.container_id

    @property
    def pid(self) -> int:
        return 1

    @property
    def inside(self) -> None:
        return None

    @property
    def not_inside(self) -> str:
        return "it is a fake"

    @property
    def how(self) -> str:
        return "fresh"

    @property
    def why(self) -> str:
        return "it is a fake"

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("sandbox.create", NOW_NS, 1000), Phase("code.import", NOW_NS + 1000, 1000))

    @property
    def scratch(self) -> Path:
        return self._folder

    @property
    def incoming(self) -> Path:
        return self._folder / "incoming"

    @property
    def running(self) -> frozenset[tuple[str, int]]:
        return frozenset(self._tasks)

    @property
    def disk_mib(self) -> int:
        return 0

    @property
    def lines_up(self) -> bool:
        return self.line.open

    def recall(self) -> None:
        self.line.recall()

    def _ask_back(self, given: Given) -> None:
        """The runner answers at the next turn of the loop."""
        asyncio.get_running_loop().call_soon(self._give_back, given)

    def _give_back(self, given: Given) -> None:
        if not given.begun and self.line.get(given.key) is given:
            given.ended(NotBegun())
            self.line.remove(given)

    async def run(
        self, request: InputRequest, on_item: OnItem | None = None, on_begin: OnBegin | None = None
    ) -> End | NotBegun:
        self.requests.append(request)
        if self._exit.done():
            return NotBegun(exit=self._exit.result())
        self.items[request.call, request.index] = on_item
        given = Given(request, asyncio.get_running_loop().create_future(), on_item, None)
        given.on_begin = lambda: self._begin(given, on_begin)
        self.line.add(given)
        try:
            return await given.end
        finally:
            self.line.remove(given)

    def _begin(self, given: Given, on_begin: OnBegin | None) -> None:
        if on_begin is not None:
            on_begin()
        task = self._tasks[given.key] = asyncio.get_running_loop().create_task(self._run(given.request))
        self.most_at_once = max(self.most_at_once, len(self._tasks))
        task.add_done_callback(lambda _: self._over(given, task))

    def _over(self, given: Given, task: asyncio.Task[End]) -> None:
        self._tasks.pop(given.key, None)
        given.ended(failed("cancelled", FailureKind.CANCELLED) if task.cancelled() else task.result())
        self.line.remove(given)

    async def _run(self, request: InputRequest) -> End:
        return await self._program(self, request)

    def yield_item(self, request: InputRequest, seq: int, payload: bytes) -> None:
        """As the runner does for a generator."""
        on_item = self.items[request.call, request.index]
        assert on_item is not None
        on_item(Item(call=request.call, index=request.index, seq=seq, encoding=Encoding.PICKLE, payload=payload))

    def credit(self, call: str, index: int, n: int) -> None:
        self.credits[call, index] = self.credits.get((call, index), 0) + n

    def cancel(self, call: str, index: int) -> None:
        given, task = self.line.get((call, index)), self._tasks.get((call, index))
        if given is not None and not given.begun:
            self.line.recall_one(given)
        elif task is not None and not self.ignores_cancel:
            task.cancel()

    def when_enough(self, tell: Callable[[], None]) -> None:
        """Its programs never say so."""

    async def drain(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def stop(self, grace_s: float = EXIT_GRACE_S, commit_s: float = COMMIT_S) -> Exit:
        self.end(Exit(code=0, signal=None, reason="stopped"))
        return await self.wait()

    def kill(self, reason: str = "killed") -> None:
        self.end(Exit(code=None, signal=9, reason=reason))

    def end(self, exit: Exit) -> None:
        """It ends like this."""
        if not self._exit.done():
            self.line.lost(exit)
            for task in self._tasks.values():
                task.cancel()
            self._exit.set_result(exit)
            shutil.rmtree(self._folder, ignore_errors=True)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._exit)


class FakeBackend:
    """Makes fake containers; `programs` by function name."""

    def __init__(self, programs: Mapping[str, Program], isolation: Isolation = Isolation.PROCESS) -> None:
        self.programs = dict(programs)
        self.isolation = isolation
        self.no_gpus = ""
        self.containers: list[FakeContainer] = []
        self.ensured: list[ImageSpec] = []
        self.lines_up = False
        self.start_failure: BaseException | None = None
        self.starting = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.closed = False

    async def probe(self) -> Capabilities:
        return Capabilities(
            backend="fake",
            isolation=self.isolation,
            python_versions=("3.11",),
            mount_namespaces=False,
            huge_pages=False,
            no_gpus=self.no_gpus,
        )

    async def ensure_root(self, image: ImageSpec, on_log: OnText) -> Root:
        self.ensured.append(image)
        return Root(image_id=image.id, python=Path("/usr/bin/python3"), site_packages=None)

    def images(self) -> tuple[str, ...]:
        return ()

    async def sweep_images(self, now: float) -> None: ...

    async def prune_images(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        return Freed((), (), 0, 0)

    async def template(self, request: ContainerRequest, on_log: OnLog) -> NoTemplate:
        return NoTemplate(reason="it is a fake")

    async def start(self, request: ContainerRequest, on_log: OnLog) -> FakeContainer:
        self.starting.set()
        await self.may_start.wait()
        if self.start_failure is not None:
            raise self.start_failure
        container = FakeContainer(request, self.programs[request.spec.name], on_log)
        if self.lines_up:
            container.line.order()
        self.containers.append(container)
        return container

    async def close(self) -> None:
        self.closed = True
        for container in self.containers:
            container.kill("the backend was closed")
