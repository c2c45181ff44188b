"""What it takes until an image is ready on the machine: layers made anew, and found. Needs root and, once, an index.

scripts/bench images                       a base of this machine's CPython; wheels from the index, then from uv's cache
scripts/bench images --repeat 20
scripts/bench images --base ROOT.tar       another base, with apt: measures apt_install as well
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from calls import commit, machine

from squall.spec import ImageSpec, ImageStep
from squall_images import bases, host_base
from squall_images.build_room import Room, Work
from squall_images.chain import PATH, Configuration
from squall_images.layered import LayeredImage
from squall_images.store import LayerStore

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
BASE = "base"


def step(kind: str, **arguments: object) -> ImageStep:
    return ImageStep(kind, arguments)


def image(*steps: ImageStep) -> ImageSpec:
    return ImageSpec("", (step("from_registry", tag=BASE), *steps))


def cpu_s() -> float:
    """Processor time of this process and of the children that have ended."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


async def measure(name: str, times: int, work: Callable[[int], Awaitable[object]]) -> None:
    walls, cpus = [], []
    for number in range(times):
        began, used = time.perf_counter(), cpu_s()
        await work(number)
        walls.append((time.perf_counter() - began) * 1000)
        cpus.append((cpu_s() - used) * 1000)
    walls.sort()
    p95 = walls[min(len(walls) - 1, round(0.95 * len(walls)))]
    print(f"{name:<58} {statistics.median(walls):8.1f} {p95:8.1f} {statistics.median(cpus):8.1f}", flush=True)


def silent(_: str) -> None:
    pass


async def run(home: Path, times: int, base: Path | None) -> None:
    store = LayerStore(home)
    if base is None:
        root = home.parent / "root"
        await asyncio.to_thread(host_base.make, root, Path(sys.executable))
        base = root
    await asyncio.to_thread(bases.register, store.folder, BASE, base, Configuration(env=dict(host_base.ENV)))

    async def ensure(*steps: ImageStep) -> LayeredImage:
        return await store.ensure(image(*steps), silent)

    async def ready(*steps: ImageStep) -> None:
        """The image, and the first line of Python in a room of it."""
        found = await ensure(*steps)
        work = Work(command=[found.python, "-I", "-S", "-c", "1"], env={"PATH": PATH}, proxied=False)
        await Room(found.layers, home / "staging" / "bench").run("bench", work, silent)

    data = step("pip_install", packages=["numpy", "pandas"])
    six = [step("pip_install", packages=[f"six==1.{minor}.0"]) for minor in (16, 17)]
    for last in six:
        await ensure(data, last)
        await ensure(step("pip_install", packages=["numpy", "pandas", last.arguments["packages"][0]]))

    def forced(what: ImageStep, number: int) -> ImageStep:
        return ImageStep(what.kind, {**what.arguments, "forced": str(number)})

    print(f"{'':<58} {'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>8}")
    await measure("nothing changed: image found", times, lambda _: ensure(data, six[0]))
    await measure("nothing changed: and first line of Python in a room", times, lambda _: ready(data, six[0]))
    await measure("last step changed (six on numpy, pandas)", times, lambda n: ensure(data, forced(six[n % 2], n)))
    await measure("the same, and first line", times, lambda n: ready(data, forced(six[n % 2], times + n)))
    whole = [step("pip_install", packages=["numpy", "pandas", f"six==1.{minor}.0"]) for minor in (16, 17)]
    await measure("one of three packages of a step changed", times, lambda n: ensure(forced(whole[n % 2], n)))
    await measure(
        "run_commands changed (`true`)", times, lambda n: ensure(data, step("run_commands", commands=[f"true {n}"]))
    )
    if (await ensure()).layers[0].joinpath("usr/bin/apt-get").exists():
        await ensure(step("apt_install", packages=["jq"]))
        jq = step("apt_install", packages=["jq"])
        await measure("apt_install(jq), lists and archives cached", min(times, 5), lambda n: ensure(forced(jq, n)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--base", type=Path)
    given = parser.parse_args()
    print(f"images, {machine()}, {commit()}, {given.repeat} times each")
    with tempfile.TemporaryDirectory(prefix="squall-bench-", dir="/var/tmp") as folder:
        asyncio.run(run(Path(folder) / "images", given.repeat, given.base))


if __name__ == "__main__":
    main()
