"""Templates: forks where that is safe, fresh processes with the reason where it is not."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sdk.runner.containers import Workshop, alive, call, descendants_of, images_dir, value, workshop
from tests.support.eventually import eventually

from squall.spec import ImageSpec, ImageStep, Resources
from squall_gpu_agent.backend import Container, Lost, NoTemplate
from squall_gpu_agent.backends.process import ProcessBackend, ProcessSettings
from squall_gpu_agent.backends.process_template import ProcessTemplate

__all__ = ["images_dir", "workshop"]

pytestmark = pytest.mark.slow


async def pair(workshop: Workshop, source: str, **wanted: object) -> tuple[Container, Container]:
    """Two containers of one function, templates allowed."""
    request = workshop.request(source, use_template=True, **wanted)
    return await workshop.launch(request), await workshop.again(request)


async def test_containers_are_forks_of_one_parent_that_imported_once(workshop: Workshop) -> None:
    one, two = await pair(
        workshop, "import os\nprint('import')\nowner = os.getpid()\ndef f(): return owner, os.getppid(), os.getpid()"
    )
    assert (one.how, one.why, two.how, two.why) == ("fork", "", "fork", "")
    first, second = value(await call(one)), value(await call(two))
    assert first[0] == first[1] == second[0] == second[1]
    assert {first[2], second[2]} == {one.pid, two.pid}
    assert workshop.printed(one) == "import\n"
    assert workshop.printed(two) == ""
    assert "code.import" in [phase.name for phase in one.phases]
    assert [phase.name for phase in two.phases] == ["image.ensure", "sandbox.create", "runner.connect", "enter"]


async def test_forks_do_not_see_each_others_changes(workshop: Workshop) -> None:
    one, two = await pair(workshop, "seen = []\ndef f(x):\n    seen.append(x)\n    return seen")
    assert value(await call(one, 1)) == [1]
    assert value(await call(two, 2)) == [2]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "from threading import Event, Thread\nThread(target=Event().wait, daemon=True, name='poller').start()",
            "1 thread running (poller)",
        ),
        ("import socket\ns = socket.socket()", "socket:["),
        ("import subprocess\np = subprocess.Popen(['sleep', '60'])", "1 child process"),
        ("import asyncio\nloop = asyncio.new_event_loop()", "cannot share"),
    ],
)
async def test_an_import_that_leaves_something_running_means_fresh_processes_and_the_reason(
    workshop: Workshop, source: str, words: str
) -> None:
    one, two = await pair(workshop, source + "\ndef f(): return 1")
    assert (one.how, two.how) == ("fresh", "fresh")
    assert words in one.why
    assert two.why == one.why
    assert value(await call(one)) == 1
    mine = {*workshop.bare_pids(), one.pid, two.pid}
    left = set(descendants_of(await workshop.warden_pid())) - mine
    assert len(left) == source.count("Popen") * 2  # what each import started; the template and its child are gone


async def test_what_differs_per_container_arrives_after_the_fork(workshop: Workshop) -> None:
    request = workshop.request(
        """
        import os, tempfile
        folder_at_import = tempfile.gettempdir()
        wanted = "SQUALL_CONTAINER_ID SQUALL_TOKEN OMP_NUM_THREADS GLIBC_TUNABLES SECRET CUDA_VISIBLE_DEVICES"
        names = wanted.split()
        at_import = {name: os.environ.get(name) for name in names}
        def f():
            return at_import, {name: os.environ.get(name) for name in names}, tempfile.gettempdir(), os.getcwd()
        """,
        use_template=True,
        env={"SECRET": "s"},
        resources=Resources(cpu=4),
    )
    one = await workshop.launch(replace(request, token="t1", gpu_env={"CUDA_VISIBLE_DEVICES": "0"}))
    two = await workshop.again(replace(request, token="t2", gpu_env={"CUDA_VISIBLE_DEVICES": "1"}))
    for container, token, device in ((one, "t1", "0"), (two, "t2", "1")):
        at_import, now, temporary, cwd = value(await call(container))
        assert container.how == "fork"
        assert at_import["SECRET"] == now["SECRET"] == "s"
        assert at_import["SQUALL_CONTAINER_ID"] is None
        assert (at_import["OMP_NUM_THREADS"], now["OMP_NUM_THREADS"]) == ("1", "4")
        assert (now["SQUALL_CONTAINER_ID"], now["SQUALL_TOKEN"]) == (container.id, token)
        assert now["CUDA_VISIBLE_DEVICES"] == device
        assert now["GLIBC_TUNABLES"] is None
        assert temporary == str(container.scratch / "tmp")
        assert cwd == str(container.scratch / "root")


async def test_another_secret_or_app_never_shares_a_template(workshop: Workshop) -> None:
    request = workshop.request("import os\nowner = os.getpid()\ndef f(): return owner", use_template=True)
    others = [
        request,
        replace(request, env={"A": "1"}),
        replace(request, app_id="ap-2"),
        replace(request, env_version="2"),
    ]
    owners = {value(await call(await workshop.again(other))) for other in others}
    assert len(owners) == 4


STUB = """
import random
state = random.Random(1).getstate()
def seed(value=None):
    global state
    state = random.Random(value).getstate()
def rand():
    global state
    r = random.Random(); r.setstate(state); x = r.random(); state = r.getstate()
    return x
"""


async def test_random_streams_differ_between_forks(workshop: Workshop) -> None:
    # A stand-in for numpy, whose generator is equal in all forks unless it is seeded again.
    files = {
        "root/numpy/__init__.py": "",
        "root/numpy/random.py": STUB,
        "root/app.py": "import random, uuid\nimport numpy.random\nnumpy.random.rand(); random.random()\n"
        "def f(): return numpy.random.rand(), random.random(), str(uuid.uuid4())",
    }
    request = workshop.request(files, use_template=True)
    containers = [await workshop.again(request) for _ in range(3)]
    assert {container.how for container in containers} == {"fork"}
    draws = [value(await call(container)) for container in containers]
    for column in zip(*draws, strict=True):
        assert len(set(column)) == 3


async def test_numpy_forks_compute_draw_differently_and_get_their_threads_back(workshop: Workshop) -> None:
    image = ImageSpec("3.11", (ImageStep("pip_install", {"packages": ["numpy", "threadpoolctl"]}),))
    request = workshop.request(
        """
        import numpy as np, threadpoolctl
        a = np.random.rand(200, 200)
        a @ a
        def f():
            pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
            return float(np.random.rand()), (a @ a).shape, pools
        """,
        use_template=True,
        image=image,
        resources=Resources(cpu=2),
    )
    one = await workshop.launch(request)
    two = await workshop.again(request)
    assert (one.how, one.why) == ("fork", "")
    first, second = value(await call(one)), value(await call(two))
    assert first[0] != second[0]
    assert first[1] == (200, 200)
    assert first[2] == [2]


async def test_a_template_that_died_is_made_again(workshop: Workshop) -> None:
    request = workshop.request("import os\ndef f(): return os.getppid()", use_template=True)
    one = await workshop.launch(request)
    template = value(await call(one))
    os.kill(template, signal.SIGKILL)
    ended = await one.wait()
    assert ended.reason in {"killed by SIGKILL", "ended: the process that started it has died"}
    two = await workshop.again(request)
    assert two.how == "fork"
    assert value(await call(two)) != template


async def test_a_forked_container_tells_how_it_ended(workshop: Workshop) -> None:
    request = workshop.request(
        "import os, ctypes\ndef f(x): os._exit(x) if x else ctypes.string_at(0)", use_template=True
    )
    one, two = await workshop.launch(request), await workshop.again(request)
    end = await call(one, 9)
    assert isinstance(end, Lost)
    assert end.exit.code == 9
    end = await call(two, 0)
    assert isinstance(end, Lost)
    assert end.exit.reason == "killed by SIGSEGV"


async def test_concurrent_starts_wait_for_one_template(workshop: Workshop) -> None:
    request = workshop.request(
        "import os, time\ntime.sleep(0.3)\nowner = os.getpid()\ndef f(): return owner", use_template=True
    )
    containers = await asyncio.gather(*(workshop.again(request) for _ in range(5)))
    assert len({value(await call(container)) for container in containers}) == 1


async def test_the_least_recently_used_template_retires_and_its_containers_live_on(
    tmp_path: Path, images_dir: Path
) -> None:
    backend = ProcessBackend(ProcessSettings(data_dir=tmp_path / "data", images_dir=images_dir, max_templates=1))
    workshop = Workshop(backend, tmp_path)
    try:
        source = "import os\ndef f(): return os.getppid()"
        old = await workshop.start(source, use_template=True)
        template = value(await call(old))
        await workshop.start(source, use_template=True)
        assert alive(template)
        assert value(await call(old)) == template
        await old.stop()
        await eventually(lambda: not alive(template))
    finally:
        await backend.close()


async def test_a_template_can_be_made_ahead(workshop: Workshop) -> None:
    request = workshop.request("def f(): return 1", use_template=True)
    made = await workshop.backend.template(request, workshop.logs.append)
    assert isinstance(made, ProcessTemplate)
    container = await workshop.again(request)
    assert "code.import" not in [phase.name for phase in container.phases]
    plain = await workshop.backend.template(workshop.request("def f(): pass"), workshop.logs.append)
    assert isinstance(plain, NoTemplate)


async def test_async_code_and_threads_work_after_a_fork(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import asyncio, concurrent.futures
        async def f():
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                loop = asyncio.get_running_loop()
                return [await loop.run_in_executor(pool, abs, -x) for x in range(3)]
        """,
        use_template=True,
    )
    assert container.how == "fork"
    assert value(await call(container)) == [0, 1, 2]


async def test_logging_set_up_at_import_reaches_the_right_container_after_the_fork(workshop: Workshop) -> None:
    one, two = await pair(
        workshop,
        """
        import logging, sys
        logging.basicConfig(level="INFO")
        remembered = sys.stdout
        def f(x):
            logging.info("input %s", x)
            print("remembered", x, file=remembered)
        """,
    )
    assert (one.how, two.how) == ("fork", "fork")
    await call(one, 1)
    await call(two, 2)
    for container, x in ((one, 1), (two, 2)):
        assert workshop.printed(container, "stderr") == f"INFO:root:input {x}\n"
        assert workshop.printed(container) == f"remembered {x}\n"
