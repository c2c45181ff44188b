"""Blocking methods with an `.aio` form: the descriptor, and the threads in which blocking work of a loop runs.

Owns the thread pool and the way to abort what a cancelled task left behind. Imports asyncio only when a loop is there.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Generic,
    Optional,
    TypeVar,
)

from squall.errors import AsyncUsageWarning, InvalidError

if TYPE_CHECKING:
    import asyncio

R = TypeVar("R")

MAX_THREADS = 1000
MAX_GATHER = 64
"""Works of one `gather` at the same time."""
IDLE_THREAD_S = 10.0


class Aborted(BaseException):
    """The task that wanted the result was cancelled; unwinds the thread that worked for it."""


class Abort:
    """A switch that ends blocking work from another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._hooks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def set(self) -> None:
        """End the work: its waits return, its connections break."""
        with self._lock:
            self._event.set()
            hooks = list(self._hooks)
        for hook in hooks:
            hook()

    def is_set(self) -> bool:
        """Whether the work should end."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Aborted` if the work should end."""
        if self._event.is_set():
            raise Aborted()

    def add(self, hook: Callable[[], None]) -> None:
        """Call `hook` on abort, until `remove`."""
        with self._lock:
            self._hooks.append(hook)
            aborted = self._event.is_set()
        if aborted:
            hook()

    def remove(self, hook: Callable[[], None]) -> None:
        """The inverse of `add`."""
        with self._lock:
            self._hooks.remove(hook)

    def sleep(self, seconds: float) -> None:
        """Wait, or raise `Aborted`."""
        self._event.wait(seconds)
        self.check()


_local = threading.local()


def current_abort() -> Optional[Abort]:
    """The switch of the work that this thread does; None on threads of the user's."""
    return getattr(_local, "abort", None)


def under(abort: Abort, work: Callable[[], None]) -> None:
    """Do work in this thread until `abort` ends it."""
    _local.abort = abort
    try:
        work()
    except Aborted:
        pass
    finally:
        _local.abort = None


@contextlib.contextmanager
def sheltered() -> Iterator[None]:
    """Within the block this thread's work goes on although it was aborted: for what must be put in order."""
    abort = current_abort()
    _local.abort = None
    try:
        yield
    finally:
        _local.abort = abort


@contextlib.contextmanager
def ended_by(abort: Abort) -> Iterator[None]:
    """Within the block this thread works for several: `abort` ends its work, and so does what ended it before."""
    outer = current_abort()
    if outer is not None:
        outer.add(abort.set)
    _local.abort = abort
    try:
        yield
    finally:
        _local.abort = outer
        if outer is not None:
            outer.remove(abort.set)


def sleep(seconds: float) -> None:
    """time.sleep that ends with the work."""
    abort = current_abort()
    if abort is None:
        time.sleep(seconds)
    else:
        abort.sleep(seconds)


def running_loop() -> Optional[asyncio.AbstractEventLoop]:
    """The event loop that runs in this thread, without importing asyncio where nobody has."""
    asyncio_module = sys.modules.get("asyncio")
    get = getattr(asyncio_module, "_get_running_loop", None)
    return get() if get is not None else None


# --- threads ---------------------------------------------------------------------------------------------------------


class _Threads:
    """Daemon threads, made as needed. Daemons: a call that never ends must not keep the program from ending."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._idle = 0

    def submit(self, work: Callable[[], None]) -> None:
        with self._lock:
            spawn = self._idle <= 0 and self._count < MAX_THREADS
            if spawn:
                self._count += 1
            else:
                self._idle -= 1
        self._work.put(work)
        if spawn:
            threading.Thread(target=self._run, name="squall-aio", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=IDLE_THREAD_S)
            except queue.Empty:
                with self._lock:
                    if self._idle <= 0:  # somebody counts on this thread: its work arrives at once
                        continue
                    self._idle -= 1
                    self._count -= 1
                return
            work()
            del work  # it holds what the caller gave it
            with self._lock:
                self._idle += 1


_threads = _Threads()


def _after_fork() -> None:
    global _threads  # noqa: PLW0603 - the threads that it counts are those of the parent
    _threads = _Threads()


os.register_at_fork(after_in_child=_after_fork)


async def run(work: Callable[[], R], abort: Optional[Abort] = None) -> R:
    """The result of blocking work, done in a thread. Cancelling the task aborts the work (by `abort`, where given)."""
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()
    context = contextvars.copy_context()  # the caller's span, and in a container the input it belongs to
    switch = abort or Abort()

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def work_in_thread() -> None:
        _local.abort = switch
        try:
            switch.check()
            outcome, setter = context.run(work), future.set_result
        except BaseException as error:  # noqa: BLE001 - whatever it is, the awaiting task gets it
            outcome, setter = _carried(error), future.set_exception  # type: ignore[assignment]
        finally:
            _local.abort = None
        try:
            loop.call_soon_threadsafe(settle, setter, outcome)
        except RuntimeError:
            pass  # the loop ended; nobody waits

    _threads.submit(work_in_thread)
    try:
        return await future
    except asyncio.CancelledError:
        switch.set()
        raise


def gather(works: Sequence[Callable[[], R]], at_once: int = MAX_GATHER) -> list[R]:
    """The results of blocking works done at the same time, in order. The first failure aborts the others."""
    results: list[Any] = [None] * len(works)
    ended: queue.SimpleQueue[tuple[int, Any, Optional[BaseException]]] = queue.SimpleQueue()
    switch, waiting = Abort(), list(range(len(works)))
    context = contextvars.copy_context()

    def start(index: int) -> None:
        def work_in_thread() -> None:
            _local.abort = switch
            try:
                ended.put((index, context.copy().run(works[index]), None))
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                ended.put((index, None, error))
            finally:
                _local.abort = None

        _threads.submit(work_in_thread)

    outer = current_abort()
    if outer is not None:
        outer.add(switch.set)
    try:
        for _ in range(min(at_once, len(works))):
            start(waiting.pop(0))
        for _ in works:
            index, results[index], error = ended.get()
            if error is not None:
                raise error
            if waiting:
                start(waiting.pop(0))
    finally:
        switch.set()
        if outer is not None:
            outer.remove(switch.set)
    return results


def _carried(error: BaseException) -> BaseException:
    """`error` in a form that a future accepts."""
    if isinstance(error, StopIteration):
        wrapped = RuntimeError("StopIteration was raised")
        wrapped.__cause__ = error
        return wrapped
    return error


# --- the descriptor --------------------------------------------------------------------------------------------------


class Blocking(Generic[R]):
    """A bound blocking method. Call it, or await its `aio`."""

    __slots__ = ("_arguments", "_body", "_check", "_name")

    def __init__(self, body: Callable[..., R], owner: Any, name: str, check: Callable[[str], None]) -> None:
        self._body = body
        self._arguments = () if owner is None else (owner,)
        self._name = name
        self._check = check

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if running_loop() is not None:
            self._check(self._name)
        return self._body(*self._arguments, *args, **kwargs)

    async def aio(self, *args: Any, **kwargs: Any) -> R:
        """The same without blocking the event loop."""
        return await run(functools.partial(self._body, *self._arguments, *args, **kwargs))

    @property
    def __doc__(self) -> Optional[str]:  # type: ignore[override]
        return self._body.__doc__


def warn_in_loop(name: str, instead: str = "") -> None:
    """What happens when a blocking method is called inside a running event loop."""
    from squall import config

    if config.load().async_warnings:
        use = instead or f"await {name}.aio(...)"
        warnings.warn(f"{name}() blocks the running event loop; use `{use}`", AsyncUsageWarning, stacklevel=3)


def refuse_in_loop(name: str) -> None:
    """For methods that would run the caller's iterator inside the loop it may need."""
    raise InvalidError(f"{name}() cannot be used inside a running event loop", fix=f"Use `{name}.aio(...)` there.")


class blocking(Generic[R]):
    """Decorator: a method that blocks, and its `.aio` form."""

    def __init__(self, body: Callable[..., R]) -> None:
        self._body = body
        self.__doc__ = body.__doc__
        self._name = body.__name__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{owner.__name__}.{name}"

    def __get__(self, instance: Any, owner: Optional[type] = None) -> Blocking[R]:
        return Blocking(self._body, instance, self._name, warn_in_loop)


class BlockingIterator(Generic[R]):
    """A bound method that returns an iterator whose steps block. Loop over it, or `async for` over its `aio`."""

    __slots__ = ("_body", "_name", "_owner")

    def __init__(self, body: Callable[..., Iterator[R]], owner: Any, name: str) -> None:
        self._body, self._owner, self._name = body, owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Iterator[R]:
        if running_loop() is not None:
            warn_in_loop(self._name)
        return self._body(self._owner, *args, **kwargs)

    async def aio(self, *args: Any, **kwargs: Any) -> AsyncIterator[R]:
        """The same for `async for`."""
        abort, end, one_at_a_time = Abort(), object(), threading.Lock()
        iterator: Any = await run(functools.partial(self._body, self._owner, *args, **kwargs), abort)

        def step() -> Any:
            with one_at_a_time:
                return next(iterator, end)

        def close() -> None:
            # A step that was cancelled may still be on its way out; what it raises belongs to nobody any more.
            with one_at_a_time, contextlib.suppress(Exception):
                iterator.close()

        try:
            while True:
                item = await run(step, abort)
                if item is end:
                    return
                yield item
        finally:
            if abort.is_set():
                _threads.submit(close)
            else:
                await run(close)


class blocking_iterator(Generic[R]):
    """Decorator: a method that returns a blocking generator, and its `.aio` form."""

    def __init__(self, body: Callable[..., Iterator[R]]) -> None:
        self._body = body
        self.__doc__ = body.__doc__
        self._name = body.__name__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{owner.__name__}.{name}"

    def __get__(self, instance: Any, owner: Optional[type] = None) -> BlockingIterator[R]:
        return BlockingIterator(self._body, instance, self._name)


class Immediate(Generic[R]):
    """A bound method that never waits. It has an `aio` only because every method has one."""

    __slots__ = ("_body",)

    def __init__(self, body: Callable[..., R]) -> None:
        self._body = body

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        return self._body(*args, **kwargs)

    async def aio(self, *args: Any, **kwargs: Any) -> R:
        """The same."""
        return self._body(*args, **kwargs)


class immediate(Generic[R]):
    """Decorator of a class method that never waits: gives it an `.aio` form."""

    def __init__(self, body: Callable[..., R]) -> None:
        self._body: Any = body  # a classmethod object
        self.__doc__ = body.__doc__

    def __get__(self, instance: Any, owner: type) -> Immediate[R]:
        return Immediate(self._body.__get__(instance, owner))


class blocking_static(blocking[R]):
    """The same for a static method."""

    def __get__(self, instance: Any, owner: Optional[type] = None) -> Blocking[R]:
        return Blocking(self._body, None, self._name, warn_in_loop)
