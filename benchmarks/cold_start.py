"""Cold start on one node: from the request for a container to the first result, fresh and forked. No control plane.

    scripts/bench cold_start [--runs 15] [--numpy] [--torch] [--weights] [--backend sandbox|gvisor [--no-network]]

Each sample waits until nothing else is runnable on the machine (at most 2 s). Prints p50, p95 and range in
milliseconds, and the phases of the median start. `sandbox` and `gvisor` need root; with `gvisor` a container is not
forked but restored from its template's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from squall.spec import CodeRef, FunctionSpec, ImageSpec, ImageStep
from squall_gpu_agent.backend import Backend, Container, ContainerRequest, InputRequest, Output
from squall_gpu_agent.backends.process import ProcessBackend, ProcessSettings

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
SOURCES = {
    "stdlib": "def f(x): return x",
    "squall": "import squall\ndef f(x): return x",
    "asyncio": "import asyncio\nasync def f(x): return x",
    "numpy": "import numpy as np\na = np.ones((64, 64))\ndef f(x): return float((a @ a)[0, 0])",
    "torch": "import torch\na = torch.ones((64, 64))\ndef f(x): return float((a @ a)[0, 0])",
    "weights": "import torch\nw = torch.ones((125, 1000, 1000))\ndef f(x): return float((w[0, :64] @ w[1])[0, 0])",
}
PACKAGES = {"numpy": "numpy", "torch": "torch", "weights": "torch"}
"""What must be installed for a source; `weights` is a module with 500 MB of them."""
ARGUMENTS = pickle.dumps(((1,), {}), 4)


@dataclass
class Sample:
    """One start."""

    ready_ms: float
    result_ms: float
    phases: dict[str, float]


def wait_until_quiet() -> None:
    """Nothing runnable but this process."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        if int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) <= 1:
            return
        time.sleep(0.005)


async def one_start(backend: Backend, request: ContainerRequest) -> tuple[Sample, Container]:
    """Start a container, run one input."""
    begun = time.perf_counter()
    container = await backend.start(request, lambda _: None)
    ready = time.perf_counter()
    end = await container.run(InputRequest(call="fc-1", payload=ARGUMENTS))
    done = time.perf_counter()
    assert isinstance(end, Output), end
    phases = {phase.name: phase.duration_ns / 1e6 for phase in container.phases}
    return Sample((ready - begun) * 1000, (done - begun) * 1000, phases), container


async def measure(backend: Backend, request: ContainerRequest, runs: int) -> list[Sample]:
    """So many starts of one function, each of a container of its own."""
    samples = []
    await backend.template(request, lambda _: None)
    for number in range(runs + 1):
        wait_until_quiet()
        sample, container = await one_start(
            backend, replace(request, container_id=f"ct-{request.function_id}-{number}")
        )
        await container.stop()
        if number:  # the first makes the environment
            samples.append(sample)
        if container.why and request.spec.use_template:
            print(f"{request.function_id}: {container.how}, {container.why}")
    return samples


async def burst(backend: Backend, request: ContainerRequest, count: int) -> float:
    """Milliseconds until so many containers, asked for at once, have given a result."""
    wait_until_quiet()
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        starts = [
            tasks.create_task(one_start(backend, replace(request, container_id=f"ct-burst-{number}")))
            for number in range(count)
        ]
    took = (time.perf_counter() - begun) * 1000
    await asyncio.gather(*(start.result()[1].stop() for start in starts))
    return took


async def calls(backend: Backend, request: ContainerRequest, count: int) -> float:
    """Microseconds for one call after the other on a warm container."""
    _, container = await one_start(backend, replace(request, container_id="ct-calls"))
    begun = time.perf_counter()
    for number in range(count):
        await container.run(InputRequest(call=f"fc-{number}", payload=ARGUMENTS))
    took = (time.perf_counter() - begun) / count * 1e6
    await container.stop()
    return took


def report(title: str, samples: list[Sample]) -> None:
    """One line."""
    ready, result = ([getattr(sample, name) for sample in samples] for name in ("ready_ms", "result_ms"))
    median = sorted(samples, key=lambda sample: sample.result_ms)[len(samples) // 2]
    phases = ", ".join(f"{name} {ms:.1f}" for name, ms in median.phases.items())
    p95 = sorted(result)[min(len(result) - 1, int(len(result) * 0.95))]
    print(
        f"{title:22} ready {statistics.median(ready):6.1f}   result {statistics.median(result):6.1f}"
        f"   p95 {p95:.1f} ({min(result):.1f}..{max(result):.1f})   {phases}"
    )


def open_backend(name: str, folder: Path, packages_wanted: Sequence[str], with_network: bool) -> Backend:
    """The backend that is measured."""
    if name == "process":
        return ProcessBackend(ProcessSettings(data_dir=folder / "data"))
    # The base root that the tests use: it needs no registry.
    from tests.docker.sandboxes import BaseRoots
    from tests.support import base_root

    from squall_gpu_agent.backends.gvisor.backend import GvisorBackend
    from squall_gpu_agent.backends.sandbox.backend import SandboxBackend
    from squall_gpu_agent.backends.sandbox.network import NetworkRules
    from squall_gpu_agent.backends.sandbox.settings import SandboxSettings

    root, packages = folder / "root", folder / "packages"
    base_root.make(root)
    site = packages / f"usr/local/lib/python{OWN}/site-packages"
    site.mkdir(parents=True)
    if packages_wanted:
        uv = Path(sys.executable).with_name("uv")
        wanted = {PACKAGES[title] for title in packages_wanted}
        subprocess.run([uv, "pip", "install", "-q", "--target", site, *sorted(wanted)], check=True)
    for part in (root / "usr/local/lib", site):
        compileall.compile_dir(part, quiet=2, workers=0)
    rules = NetworkRules() if with_network else None
    settings = SandboxSettings(data_dir=folder / "data", memory_mib=8192, network=rules)
    kind = GvisorBackend if name == "gvisor" else SandboxBackend
    return kind(settings, BaseRoots(root, packages))


async def main(runs: int, wanted: Sequence[str], name: str, with_network: bool) -> None:
    """All of it."""
    print(f"# {platform.node()}, {platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    print("# milliseconds from the request to ready and to the first result, p50 (min..max)")
    with tempfile.TemporaryDirectory() as folder:
        backend = open_backend(name, Path(folder), wanted, with_network)
        try:
            forked = "restored" if name == "gvisor" else "fork"
            for title, source in SOURCES.items():
                if title in PACKAGES and title not in wanted:
                    continue
                steps = (ImageStep("pip_install", {"packages": [PACKAGES[title]]}),) if title in PACKAGES else ()
                code = Path(folder) / title
                (code / "root").mkdir(parents=True)
                (code / "root" / "app.py").write_text(source)
                for use_template in (False, True):
                    spec = FunctionSpec(
                        name="f",
                        code=CodeRef(title, "app", "f"),
                        image=ImageSpec(OWN, steps),
                        use_template=use_template,
                    )
                    request = ContainerRequest(
                        container_id="", app_id="ap", function_id=f"{title}-{use_template}", spec=spec, code_dir=code
                    )
                    report(f"{title}, {forked if use_template else 'fresh'}", await measure(backend, request, runs))
                    if title == "stdlib" and use_template and name != "gvisor":
                        print(f"burst of 50 forks: {await burst(backend, request, 50):.0f} ms")
                        print(f"one call after the other: {await calls(backend, request, 2000):.0f} us each")
        finally:
            await backend.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--numpy", action="store_true")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--weights", action="store_true", help="torch with 500 MB of weights")
    parser.add_argument("--backend", choices=("process", "sandbox", "gvisor"), default="process")
    parser.add_argument("--no-network", action="store_true")
    given = parser.parse_args()
    asked = [name for name in PACKAGES if getattr(given, name)]
    asyncio.run(main(given.runs, asked, given.backend, not given.no_network))
