"""Classes: parameters, hooks, methods."""

from __future__ import annotations

import asyncio

import pytest
from tests.sdk.runner.containers import Workshop, call, request_of, value

from squall_gpu_agent.backend import Item, StartFailed, StartFailureKind

pytestmark = pytest.mark.slow

# What the SDK leaves on a raw class, without the SDK.
MARKS = """
class parameter:
    __squall_parameter__ = True
    def __init__(self, **given):
        self.has_default = "default" in given
        self.default = given.get("default")
    def __set_name__(self, owner, name):
        self.name = name
def hook(kind):
    def mark(raw):
        raw.__squall_hook__ = kind
        return raw
    return mark
enter, exit_ = hook("enter"), hook("exit")
"""


def source(text: str) -> dict[str, str]:
    return {"root/marks.py": MARKS, "root/app.py": text}


async def test_hooks_run_base_classes_first_before_any_input_and_on_stop(workshop: Workshop) -> None:
    container = await workshop.start(
        source(
            """
            from marks import enter, exit_, hook
            class Base:
                log = []
                @enter
                def a(self): self.log.append("base")
                @enter
                def replaced(self): self.log.append("never")
                @exit_
                def leave(self): print("left", self.log)
            class C(Base):
                @hook("enter_snap")
                def first(self): self.log.append("snap")
                @enter
                async def b(self): self.log.append("async")
                def replaced(self): pass
                def method(self): return list(self.log)
            """
        ),
        "C",
        is_class=True,
        methods=["method"],
        params={},
    )
    assert value(await call(container, method="method")) == ["snap", "base", "async"]
    assert (await container.stop()).reason == "stopped"
    assert workshop.printed(container) == "left ['snap', 'base', 'async']\n"


async def test_parameters_have_given_values_or_defaults_before_the_hooks(workshop: Workshop) -> None:
    container = await workshop.start(
        source(
            """
            from marks import enter, parameter
            class C:
                name = parameter()
                raw = parameter()
                n = parameter(default=5)
                @enter
                def prepare(self): self.seen = (self.name, self.raw, self.n)
                def method(self): return self.seen
            """
        ),
        "C",
        is_class=True,
        methods=["method"],
        params={"name": "x", "raw": {"base64": "AP8="}},
    )
    assert value(await call(container, method="method")) == ("x", b"\x00\xff", 5)


async def test_sync_and_async_methods_share_one_instance_and_one_loop(workshop: Workshop) -> None:
    container = await workshop.start(
        source(
            """
            import asyncio
            from marks import enter
            class C:
                @enter
                async def begin(self):
                    self.ticks = 0
                    self.task = asyncio.get_running_loop().create_task(self.tick())
                async def tick(self):
                    while True:
                        self.ticks += 1
                        await asyncio.sleep(0.001)
                async def wait(self):
                    before = self.ticks
                    while self.ticks == before:
                        await asyncio.sleep(0.001)
                    return "background task ran"
                def direct(self):
                    return asyncio.run(asyncio.sleep(0, "own loop"))
                def items(self, n):
                    yield from range(n)
            """
        ),
        "C",
        is_class=True,
        methods=["wait", "direct", "items"],
        params={},
    )
    assert value(await call(container, method="wait")) == "background task ran"
    assert value(await call(container, method="direct")) == "own loop"
    assert value(await call(container, method="wait")) == "background task ran"
    items: list[int] = []
    request = request_of(1000, method="items")

    def on_item(item: Item) -> None:
        items.append(value(item))
        container.credit(request.call, 0, 1)

    await container.run(request, on_item)
    assert items == list(range(1000))


async def test_the_sdks_own_decorators_are_understood(workshop: Workshop) -> None:
    pytest.importorskip("squall.cls", exc_type=ImportError)
    container = await workshop.start(
        """
        import squall
        app = squall.App("x")
        @app.cls()
        class C:
            n: int = squall.parameter(default=2)
            @squall.enter()
            def prepare(self): self.base = 40
            @squall.method()
            def add(self): return self.base + self.n
        """,
        "C",
        is_class=True,
        methods=["add"],
        params={},
    )
    assert value(await call(container, method="add")) == 42


async def test_an_enter_hook_that_raises_is_the_users_error_as_data(workshop: Workshop) -> None:
    with pytest.raises(StartFailed) as caught:
        await workshop.start(
            source("from marks import enter\nclass C:\n    @enter\n    def go(self): raise OSError('no weights')\n"),
            "C",
            is_class=True,
            methods=[],
            params={},
        )
    failed = caught.value
    assert (failed.kind, failed.type_name, failed.message) == (StartFailureKind.USER_CODE, "OSError", "no weights")
    assert "/root/app.py" in failed.traceback
    assert failed.pickled is not None
    assert [phase.name for phase in failed.phases][-1] == "enter"


async def test_an_exit_hook_that_raises_is_in_the_log_and_the_others_run(workshop: Workshop) -> None:
    container = await workshop.start(
        source(
            """
            from marks import exit_
            class C:
                @exit_
                def one(self): raise ValueError("broken hook")
                @exit_
                async def two(self): print("two ran")
            """
        ),
        "C",
        is_class=True,
        methods=[],
        params={},
    )
    assert (await container.stop()).code == 0
    assert "broken hook" in workshop.printed(container, "stderr")
    assert workshop.printed(container) == "two ran\n"


async def test_an_exit_hook_beyond_its_grace_is_killed(workshop: Workshop) -> None:
    container = await workshop.start(
        source(
            """
            import time
            from marks import exit_
            class C:
                @exit_
                def slow(self): print('in', flush=True); time.sleep(60)
            """
        ),
        "C",
        is_class=True,
        methods=[],
        params={},
    )
    async with asyncio.timeout(10):
        ended = await container.stop(grace_s=0.5)
    assert ended.reason == "killed: it did not stop within 0.5 s"
    assert workshop.printed(container) == "in\n"
