"""Real containers of the process backend for tests: from source text to results."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pickle
import textwrap
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squall.spec import CodeRef, Encoding, FunctionSpec, MethodSpec, ScalingPolicy, digest
from squall_gpu_agent.backend import Container, ContainerRequest, End, InputRequest, Item, Log, NotBegun, OnItem, Output
from squall_gpu_agent.backends.process import ProcessBackend, ProcessSettings

_numbers = itertools.count(1)


class Workshop:
    """Starts containers from source text, and remembers everything that they print."""

    def __init__(self, backend: ProcessBackend, folder: Path) -> None:
        self.backend = backend
        self.folder = folder
        self.logs: list[Log] = []

    def bundle(self, files: Mapping[str, str]) -> Path:
        """A folder as the agent extracts bundles: {"root/app.py": source}."""
        code = self.folder / f"code-{next(_numbers)}"
        for name, text in files.items():
            path = code / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return code

    def request(self, source: str | Mapping[str, str], qualname: str = "f", **wanted: Any) -> ContainerRequest:
        """What to start. Keywords of `ContainerRequest` and of `FunctionSpec`, `methods` as names, `max_inputs`."""
        files = {"root/app.py": source} if isinstance(source, str) else source
        number = next(_numbers)
        own = {name: wanted.pop(name) for name in list(wanted) if name in ContainerRequest.__dataclass_fields__}
        methods = tuple(MethodSpec(name=name) for name in wanted.pop("methods", [""]))
        slots = wanted.pop("max_inputs", 1)
        spec = FunctionSpec(
            name=qualname,
            code=CodeRef(bundle_sha256=digest(dict(files)), module="app", qualname=qualname),
            methods=methods,
            scaling=ScalingPolicy(max_inputs=slots, target_inputs=slots),
            **{"use_template": False, **wanted},
        )
        values = {
            "container_id": f"ct-{number}",
            "app_id": "ap-test",
            "function_id": f"fu-{number}",
            "spec": spec,
            "code_dir": self.bundle(files),
        }
        return ContainerRequest(**{**values, **own})

    async def start(self, source: str | Mapping[str, str], qualname: str = "f", **wanted: Any) -> Container:
        """A container of that source, fresh unless `use_template=True`."""
        return await self.launch(self.request(source, qualname, **wanted))

    async def launch(self, request: ContainerRequest) -> Container:
        """A container of that request."""
        async with asyncio.timeout(30):
            return await self.backend.start(request, self.logs.append)

    async def again(self, request: ContainerRequest) -> Container:
        """One more container of the same function."""
        return await self.launch(replace(request, container_id=f"ct-{next(_numbers)}"))

    async def warden_pid(self) -> int:
        """The ancestor of everything that the backend started."""
        return (await self.backend._starter.warden()).pid

    def bare_pids(self) -> list[int]:
        """Interpreters that only wait to be forked."""
        return [template.pid for template in self.backend._starter._bare.all()]

    def printed(self, container: Container, stream: str = "stdout") -> str:
        """Everything that a container printed."""
        return "".join(log.text for log in self.logs if log.container == container.id and log.stream == stream)


@pytest.fixture(scope="session")
def images_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Environments, made once for all tests of a worker."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture
async def workshop(tmp_path: Path, images_dir: Path) -> AsyncIterator[Workshop]:
    """A backend of its own for each test; everything that it started is gone afterwards."""
    backend = ProcessBackend(ProcessSettings(data_dir=tmp_path / "data", images_dir=images_dir))
    try:
        yield Workshop(backend, tmp_path)
    finally:
        await backend.close()


def request_of(*args: Any, call: str = "", method: str = "", encoding: str = "pickle", **kwargs: Any) -> InputRequest:
    """One input with these arguments."""
    body = {"args": list(args), "kwargs": kwargs}
    payload = pickle.dumps((args, kwargs), 4) if encoding == "pickle" else json.dumps(body).encode()
    return InputRequest(
        call=call or f"fc-{next(_numbers)}", method=method, encoding=Encoding(encoding), payload=payload, attempt=1
    )


async def call(container: Container, *args: Any, on_item: OnItem | None = None, **kwargs: Any) -> End | NotBegun:
    """Run one input to its end."""
    async with asyncio.timeout(30):
        return await container.run(request_of(*args, **kwargs), on_item)


def value(end: End | NotBegun | Item) -> Any:
    """The value of an output or item."""
    assert isinstance(end, Output | Item), end
    data = end.payload if end.payload is not None else read_and_remove(end.path)
    return pickle.loads(data) if end.encoding == Encoding.PICKLE else json.loads(data)


def read_and_remove(path: Path | None) -> bytes:
    """The payload of a file, which then is gone."""
    assert path is not None
    data = path.read_bytes()
    path.unlink()
    return data


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants_of(pid: int) -> list[int]:
    """Its children, their children, and so on."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):  # each knows those that it has started
                with contextlib.suppress(OSError):
                    children = Path(f"/proc/{parent}/task/{thread}/children").read_text()
                    found += [int(child) for child in children.split()]
    return found[1:]
