"""What one build step may take and do: memory, processes, disk, time, system calls; and its secrets. Needs root."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support import layers
from tests.support.layers import image, step

from squall.errors import ImageBuildError
from squall.spec import ImageSpec, ImageStep
from squall_contracts.builds import scoped
from squall_images import keys
from squall_images.build_limits import StepLimits
from squall_images.build_room import blotter
from squall_images.store import BuildSettings, LayerStore
from squall_images.trees import entries, remove

pytestmark = pytest.mark.slow

in_rooms = [pytest.mark.root, pytest.mark.slow]
CANARY, OTHER = "canary-7f3a91", "canary-0b77c2"
LIMITS = StepLimits(memory_mib=96, processes=24, disk_mib=16)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = layers.make_root(tmp_path_factory.mktemp("base") / "root")
    home = layers.store_with_base(tmp_path_factory.mktemp("layers"), root).home
    asyncio.run(LayerStore(home).ensure(image(), print))
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "layers", copy_function=os.link, symlinks=True))


def commands(*lines: str, **arguments: object) -> ImageStep:
    return step("run_commands", commands=list(lines), **arguments)


async def failed(home: Path, spec: ImageSpec, limits: StepLimits = LIMITS, timeout_s: float = 60) -> str:
    store = LayerStore(home, settings=BuildSettings(limits=limits, step_timeout_s=timeout_s))
    with pytest.raises(ImageBuildError) as caught:
        await store.ensure(spec, print)
    assert not list((home / "staging").iterdir())
    return caught.value.message


class TestInRooms:
    pytestmark = in_rooms

    async def test_a_bomb_of_every_kind_is_a_failed_build_that_says_which_limit_it_reached(self, home: Path) -> None:
        memory = commands("""python3 -c 'x = bytearray(400 << 20)'""")
        assert "more memory than the 96 MiB of a step (SQUALL_BUILDER_STEP_MEMORY_MIB)" in await failed(
            home, image(memory)
        )
        fork = "import os, time\nwhile True:\n    os.fork() or time.sleep(100)"
        told = await failed(home, image(commands(f'python3 -c "{fork}"')))
        assert "more than the 24 processes of a step (SQUALL_BUILDER_STEP_PROCESSES)" in told
        many = "import itertools\nfor n in itertools.count():\n    open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))"
        told = await failed(home, image(commands(f'python3 -c "{many}"')))
        assert "more than the 16 MiB of a step (SQUALL_BUILDER_STEP_DISK_MIB)" in told
        one = commands("""python3 -c 'open("/large", "wb").write(bytes(40 << 20))' || true""")
        assert "more than the 16 MiB of a step" in await failed(home, image(one))
        assert "it took more than 0.5 s" in await failed(home, image(commands("sleep 100")), timeout_s=0.5)
        left = [path for top in ("/sys/fs/cgroup",) for path in Path(top).rglob(f"squall-build-{os.getpid()}-*")]
        assert not left

    async def test_a_command_makes_few_system_calls_and_can_still_change_its_user(self, home: Path) -> None:
        asked = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, *arguments):
    done = getattr(libc, name)(*arguments)
    print(name, done, ctypes.get_errno() if done < 0 else 0)
tried("unshare", 0)
tried("mount", b"none", b"/mnt", b"tmpfs", 0, None)
tried("ptrace", 0, 0, 0, 0)
tried("syscall", 250, 0, 0, 0)
tried("syscall", 425, 1, 0)
for family in (socket.AF_INET, socket.AF_VSOCK, socket.AF_PACKET):
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
        print("socket", family.value, "made")
    except OSError as error:
        print("socket", family.value, error.errno)
os.chroot("/usr")
print("chroot")
os.setresuid(1000, 1000, 1000)
print("user", os.getuid())
"""
        lines: list[str] = []
        await LayerStore(home).ensure(image(commands(f"python3 - <<'END'\n{asked}\nEND")), lines.append)
        assert lines[-10:] == [
            *(f"{name} -1 1" for name in ("unshare", "mount", "ptrace", "syscall", "syscall")),
            *("socket 2 made", "socket 40 1", "socket 17 1", "chroot", "user 1000"),
        ]

    async def test_secrets_are_seen_by_their_step_and_stay_nowhere(self, home: Path) -> None:
        values = {"TOKEN": CANARY}
        asked: list[Any] = []

        async def opened(references: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
            asked.append(references)
            return values

        def secret_step(kind: str, **arguments: object) -> ImageStep:
            return step(kind, **arguments, secrets=["token"], _secrets=[{"name": "token"}])

        looks = "test $TOKEN = $(cat /.squall/secrets/TOKEN); echo has $TOKEN; grep -c /.squall/secrets /proc/mounts"
        recipe = image(
            secret_step("run_commands", commands=[looks]),
            commands("echo then ${TOKEN-nothing}; test -e /.squall/secrets || echo gone"),
        )
        spec = scoped(recipe, "mine", "main")
        lines: list[str] = []
        found = await LayerStore(home).ensure(spec, lines.append, opened)
        assert lines[1:3] == ["has ***", "1"]
        assert lines[-2:] == ["then nothing", "gone"]
        assert asked == [[{"name": "token"}]]
        values["TOKEN"] = OTHER
        again = await LayerStore(home).ensure(scoped(recipe, "mine", "main"), lines.append, opened)
        assert again.layers == found.layers, "what a secret is changes no key"
        for whose in (("theirs", "main"), ("mine", "other")):
            theirs = await LayerStore(home).ensure(scoped(recipe, *whose), lines.append, opened)
            assert theirs.layers[:2] == found.layers[:2]
            assert not set(theirs.layers[2:]) & set(found.layers), "what was made with secrets is nobody else's"
        fails = image(secret_step("run_commands", commands=["echo lost $TOKEN; exit 3"]))
        with pytest.raises(ImageBuildError, match=r"lost \*\*\*") as caught:
            await LayerStore(home).ensure(scoped(fails, "mine", "main"), lines.append, opened)
        assert OTHER not in str(caught.value.data)
        assert not [line for line in lines if "canary" in line]
        for path in map(Path, entries(home)):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                assert CANARY.encode() not in content, path
                assert OTHER.encode() not in content, path

    async def test_packages_with_secrets_are_installed_in_a_room(self, home: Path, tmp_path: Path) -> None:
        layers.wheel(tmp_path / "wheels", "alpha")

        async def fetch(reference: object, folder: Path) -> None:
            shutil.copytree(tmp_path / "wheels", folder / "wheels")

        async def opened(references: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
            return {"UV_FIND_LINKS": "/wheels", "UV_OFFLINE": "1"}

        install = layers.pip("alpha")
        hidden = replace(install, arguments={**install.arguments, "secrets": ["index"], "_secrets": [{}]})
        spec = scoped(image(step("add_local", files={"sha256": "x", "bytes": 1}), hidden), "mine", "main")
        found = await LayerStore(home, fetch=fetch).ensure(spec, print, opened)
        assert (found.layers[-1] / found.site_packages.lstrip("/") / "alpha.py").exists()

    async def test_a_step_whose_secrets_cannot_be_had_says_so(self, home: Path) -> None:
        hidden = commands("true", secrets=["token"], _secrets=[{}])
        with pytest.raises(ImageBuildError, match="cannot be opened here"):
            await LayerStore(home).ensure(scoped(image(hidden), "mine", "main"), print)
        with pytest.raises(ImageBuildError, match="does not say whose"):
            await LayerStore(home).ensure(image(hidden), print)
        lost = commands("true", secrets=["token"])
        with pytest.raises(ImageBuildError, match="has lost its secrets"):
            await LayerStore(home).ensure(scoped(image(lost), "mine", "main"), print)


def test_output_is_blotted_line_by_line_and_short_values_are_left() -> None:
    blotted = blotter({"KEY": "first line\nsecond line\n", "FLAG": "1", "LONG": "first line and more"})
    assert blotted("a first line and more, second line, 1") == "a ***, ***, 1"


def test_only_the_server_says_whose_secrets_a_step_means() -> None:
    claimed = image(commands("a", secrets=["s"], scope="theirs/main"), commands("b", scope="theirs/main"))
    found = scoped(claimed, "mine", "main")
    assert [step.arguments.get("scope") for step in found.steps] == ["mine/main", None]
    assert found.recipe_id == image(commands("a", secrets=["s"]), commands("b")).id
    assert found.id != found.recipe_id
    plain = image(commands("a"))
    assert scoped(plain, "mine", "main").id == plain.id


def test_plain_processes_have_no_images_with_secrets() -> None:
    hidden = image(step("pip_install", packages=["a"], secrets=["s"]))
    assert hidden.needs_root
    with pytest.raises(ImageBuildError, match="has secrets, which are given to build rooms alone"):
        keys.plan(hidden)


@pytest.mark.parametrize(("name", "depth"), [("x" * 200, 30), ("x", 1500)])
def test_folders_too_deep_to_be_looked_into_are_an_error_and_leave_all_the_same(
    tmp_path: Path, name: str, depth: int
) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(ImageBuildError, match="too deep"):
        list(entries(tmp_path))
    remove(tmp_path / name)
    assert not os.listdir(tmp_path)
