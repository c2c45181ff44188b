"""Native layers: what steps make, what is made again and what not, what fails and how. Needs root; no registry."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support import layers
from tests.support.layers import image, pip, step

from squall.errors import ImageBuildError
from squall.spec import ImageSpec
from squall_images import base_bytecode, pythons
from squall_images.build_limits import StepLimits
from squall_images.build_room import Room, Work
from squall_images.chain import PATH
from squall_images.layered import LayeredImage, LayerFolder, Python
from squall_images.store import BuildSettings, LayerStore

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layers.make_root(tmp_path_factory.mktemp("base") / "root")


@pytest.fixture(scope="session")
def filled(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the base, asked for its interpreter."""
    home = layers.store_with_base(tmp_path_factory.mktemp("layers"), root).home
    asyncio.run(LayerStore(home).ensure(image(), print))
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "layers", copy_function=os.link, symlinks=True))


@pytest.fixture
def store(home: Path) -> LayerStore:
    return LayerStore(home)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    layers.wheel(folder, "alpha", requires="beta")
    layers.wheel(folder, "beta", extra="beta_old")
    layers.wheel(folder, "beta", "2.0")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    return folder


async def run(found: LayeredImage, home: Path, command: str) -> str:
    """The output of a shell command in the image."""
    lines: list[str] = []
    scratch = home / "staging" / "test"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        await Room(found.layers, scratch).run(
            "test", Work(command=["/bin/sh", "-c", command], env={"PATH": PATH, **found.env}), lines.append
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return "\n".join(lines)


async def ensure(store: LayerStore, spec: ImageSpec) -> tuple[LayeredImage, list[str]]:
    lines: list[str] = []
    return await store.ensure(spec, lines.append), lines


async def test_a_changed_library_of_the_interpreter_is_what_programs_get(store: LayerStore, home: Path) -> None:
    where = "$(python3 -c 'import sysconfig; print(sysconfig.get_path(\"stdlib\"))')"
    found, _ = await ensure(store, image(step("run_commands", commands=[f"echo changed = 1 >> {where}/colorsys.py"])))
    assert any((layer / "usr").exists() for layer in found.layers[1:-1]), "byte-code of the base"
    assert await run(found, home, "python3 -B -c 'import colorsys; print(colorsys.changed)'") == "1"


async def test_byte_code_that_could_not_be_made_once_is_made_for_the_next_image(home: Path) -> None:
    folder = LayerFolder(home)
    base = folder.base(f"debian_slim:{layers.OWN}")
    assert base is not None
    above = base_bytecode.key_above(base.layers[-1])
    shutil.rmtree(home / "layers" / above)
    small = LayerStore(home, settings=BuildSettings(limits=StepLimits(disk_mib=1)))
    found, lines = await ensure(small, image())
    assert len(found.layers) == 1
    assert any("tries again" in line for line in lines), lines
    assert not folder.has(above)
    found, _ = await ensure(LayerStore(home), image(step("env", variables={"A": "1"})))
    assert [layer.parent.name for layer in found.layers] == [base.layers[-1], above]
    assert int(folder.about(above)["bytes"]) > 1 << 20


async def test_a_plain_image_is_its_base_and_names_its_interpreter(store: LayerStore, home: Path) -> None:
    found, _ = await ensure(store, image())
    assert found.python == f"/usr/local/bin/python{layers.OWN}"
    assert found.python_version == layers.OWN
    assert len(found.layers) == 2
    assert (await run(found, home, "python3 -c 'import ssl, sqlite3; print(1)'")) == "1"
    compiled = "python3 -c 'import json, os; print(os.path.exists(json.__cached__))'"
    assert (await run(found, home, compiled)) == "True", "a container would compile it at each start"


async def test_packages_are_a_layer_with_byte_code_and_programs_of_the_image(
    store: LayerStore, home: Path, wheels: Path
) -> None:
    found, _ = await ensure(store, image(pip("alpha")))
    assert len(found.layers) == 3
    site = found.layers[2] / found.site_packages.lstrip("/")
    assert (site / "__pycache__" / f"alpha.cpython-{layers.OWN.replace('.', '')}.pyc").exists()
    assert await run(found, home, "run-alpha; python3 -c 'import beta; print(beta.version)'") == "1.0\n2.0"


async def test_a_later_layer_has_only_what_is_new_and_hides_what_is_gone(
    store: LayerStore, home: Path, wheels: Path
) -> None:
    first, _ = await ensure(store, image(pip("alpha", "beta==1.0")))
    assert await run(first, home, "python3 -c 'import beta_old, beta; print(beta.version)'") == "1.0"
    second, _ = await ensure(store, image(pip("alpha", "beta==1.0"), pip("beta==2.0")))
    assert second.layers[:3] == first.layers
    new = second.layers[3] / second.site_packages.lstrip("/")
    assert not (new / "alpha.py").exists()
    assert stat.S_ISCHR((new / "beta_old.py").lstat().st_mode)
    shown = "python3 -c 'import beta, alpha; print(beta.version)'; python3 -c 'import beta_old' || echo gone"
    assert (await run(second, home, shown)).splitlines()[0] == "2.0"
    assert (await run(second, home, shown)).splitlines()[-1] == "gone"
    same, lines = await ensure(store, image(pip("alpha", "beta==1.0"), pip("alpha")))
    assert not list((same.layers[3]).rglob("alpha.py")), "what is there already is not installed again"
    assert lines == ["pip_install alpha"]


async def test_a_package_without_a_wheel_is_built_in_the_image_not_on_the_builder(
    store: LayerStore, home: Path, tmp_path: Path
) -> None:
    layers.source_distribution(tmp_path / "wheels", "handmade")
    index = tmp_path / "index"
    (index / "handmade").mkdir(parents=True)
    shutil.move(tmp_path / "wheels" / "handmade-1.0.tar.gz", index / "handmade-1.0.tar.gz")
    copied = step("add_local", files={"sha256": "x", "bytes": 1})

    async def fetch(reference: object, folder: Path) -> None:
        (folder / "wheels").mkdir(parents=True)
        shutil.copy(index / "handmade-1.0.tar.gz", folder / "wheels")

    builder = LayerStore(home, fetch=fetch)
    found, _ = await ensure(builder, image(copied, pip("handmade", find_links="/wheels")))
    assert await run(found, home, "python3 -c 'import handmade; print(handmade.built_as)'") == "build"
    site = found.layers[3] / found.site_packages.lstrip("/")
    assert list((site / "__pycache__").glob("handmade.*.pyc"))


async def test_commands_change_the_image_and_their_layer_has_no_more_than_that(store: LayerStore, home: Path) -> None:
    found, lines = await ensure(
        store,
        image(
            step("env", variables={"COLOUR": "blue"}),
            step("workdir", path="/srv/app"),
            step(
                "run_commands", commands=["echo $COLOUR > here; echo said", "rm /etc/passwd; chown 7:8 /srv/app/here"]
            ),
        ),
    )
    assert "said" in lines
    changed = found.layers[-1]
    assert (changed / "srv/app/here").read_text() == "blue\n"
    owner = (changed / "srv/app/here").stat()
    assert (owner.st_uid, owner.st_gid) == (7, 8)
    gone = (changed / "etc/passwd").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert not (changed / ".squall").exists()
    assert await run(found, home, "cat /srv/app/here; test -e /etc/passwd || echo gone") == "blue\ngone"
    assert (found.env["COLOUR"], found.workdir) == ("blue", "/srv/app")


async def test_a_folder_that_was_made_anew_hides_the_old_one_for_every_kind_of_mount(
    store: LayerStore, home: Path
) -> None:
    found, _ = await ensure(store, image(step("run_commands", commands=["rm -r /etc/ssl; mkdir /etc/ssl"])))
    made = found.layers[-1] / "etc/ssl"
    assert {os.getxattr(made, name) for name in ("trusted.overlay.opaque", "user.overlay.opaque")} == {b"y"}
    assert await run(found, home, "ls /etc/ssl | wc -l") == "0"


async def test_a_failed_step_tells_its_output_and_exit_code_and_leaves_nothing(store: LayerStore, home: Path) -> None:
    before = set(LayerFolder(home).all_layers())
    with pytest.raises(ImageBuildError) as caught:
        await ensure(store, image(step("run_commands", commands=["echo one; echo two >&2; exit 7", "true"])))
    assert caught.value.data["exit_code"] == 7
    assert caught.value.data["output"] == "one\ntwo"
    assert str(caught.value.data["step"]).startswith("run_commands echo one")
    assert set(LayerFolder(home).all_layers()) == before
    assert not list((home / "staging").iterdir())


async def test_an_unknown_base_says_which_are_there_and_what_to_set(store: LayerStore) -> None:
    with pytest.raises(ImageBuildError, match=f"registered: debian_slim:{layers.OWN}") as caught:
        await ensure(store, image(python="3.8"))
    assert "SQUALL_BUILDER_DEBIAN_SLIM" in caught.value.hint
    with pytest.raises(ImageBuildError, match="no registry is set"):
        await ensure(store, ImageSpec("", (step("from_registry", tag="debian:12"),)))
    with pytest.raises(ImageBuildError, match="was to have Python"):
        await ensure(store, ImageSpec("3.9", (step("from_registry", tag=f"debian_slim:{layers.OWN}"),)))


async def test_only_the_changed_step_and_those_after_it_are_made_again(store: LayerStore) -> None:
    first = step("run_commands", commands=["echo first > /1"])
    one, _ = await ensure(store, image(first, step("run_commands", commands=["echo a > /2"])))
    two, lines = await ensure(store, image(first, step("run_commands", commands=["echo b > /2"])))
    assert one.layers[:3] == two.layers[:3]
    assert one.layers[3] != two.layers[3]
    assert lines == ["run_commands echo b > /2"]
    _, lines = await ensure(store, image(first, step("run_commands", commands=["echo b > /2"])))
    assert lines == []


async def test_a_variable_matters_to_what_runs_and_not_to_what_is_installed(store: LayerStore, wheels: Path) -> None:
    def variants(value: str) -> ImageSpec:
        return image(step("env", variables={"X": value}), pip("alpha"), step("run_commands", commands=["echo $X > /x"]))

    (one, _), (two, _) = await ensure(store, variants("1")), await ensure(store, variants("2"))
    assert one.layers[2] == two.layers[2]
    assert one.layers[3] != two.layers[3]


async def test_two_stores_that_want_the_same_make_it_once(home: Path) -> None:
    spec = image(step("run_commands", commands=["echo $$-once > /made; echo working"]))
    results = await asyncio.gather(*(ensure(LayerStore(home), spec) for _ in range(4)))
    assert sorted(lines.count("working") for _, lines in results) == [0, 0, 0, 1]
    assert len({found.layers for found, _ in results}) == 1


async def test_a_cancelled_build_ends_its_processes_and_the_next_one_starts_clean(home: Path) -> None:
    mark = f"{time.time_ns()}"
    spec = image(step("run_commands", commands=[f"echo begun; sleep 1000; echo {mark}"]))
    begun = asyncio.Event()
    building = asyncio.get_running_loop().create_task(
        LayerStore(home).ensure(spec, lambda line: begun.set() if line == "begun" else None)
    )
    await asyncio.wait_for(begun.wait(), 30)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(path)]
    assert not running
    assert not list((home / "staging").iterdir())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# --- what builds can reach -------------------------------------------------------------------------------------------


async def test_a_build_reaches_neither_this_machine_nor_its_files(store: LayerStore, home: Path) -> None:
    found, _ = await ensure(store, image())
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    asked = f"""
import os, socket, urllib.request, urllib.error
for address in ("127.0.0.1", "169.254.169.254", "10.0.0.1"):
    try:
        socket.create_connection((address, {port}), 2)
        print("reached", address)
    except OSError as error:
        print(error.__class__.__name__)
    try:
        urllib.request.urlopen(f"http://{{address}}:{port}/", timeout=20)
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode().strip())
print(os.path.exists({str(home)!r}), os.getpid() < 10, open("/proc/self/uid_map").read().split()[1] != "0")
print([name for name in os.listdir("/dev")].__len__())
try:
    os.mknod("/dev/sda", 0o060600, os.makedev(8, 0))
except OSError as error:
    print(error.__class__.__name__)
"""
    async with server:
        said = (await run(found, home, f"python3 - <<'END'\n{asked}\nEND")).splitlines()
    assert said[0] == "ConnectionRefusedError"  # its own loopback has the proxy alone
    for line, reason in ((1, "of another machine"), (3, "of another machine"), (5, "in a private network")):
        assert said[line].startswith("403")
        assert reason in said[line]
    assert said[6] == "False True True"
    assert said[-1] == "PermissionError"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "another machine"),
        ("::ffff:127.0.0.1", "another machine"),
        ("169.254.169.254", "another machine"),
        ("0.0.0.0", "another machine"),
        ("168.63.129.16", "cloud's own"),
        ("64:ff9b::169.254.169.254", "another machine"),
        ("64:ff9b::10.0.0.1", "private"),
        ("2002:c0a8:101::1", "private"),
        ("192.168.1.1", "private"),
        ("fd00::1", "private"),
        ("198.51.100.7", "denied"),
        ("198.51.100.9", "own machine"),
        ("10.1.2.3", None),
        ("8.8.8.8", None),
    ],
)
def test_addresses_that_builds_may_reach(address: str, reason: str | None) -> None:
    import ipaddress

    from squall_images.egress import EgressRules, networks

    rules = EgressRules(
        allowed=networks(["10.1.0.0/16"]),
        denied=networks(["198.51.100.7"]),
        own=frozenset({ipaddress.ip_address("198.51.100.9")}),
    )
    said = rules.refusal(ipaddress.ip_address(address))
    assert said is None if reason is None else reason in str(said)


# --- disks that are full ---------------------------------------------------------------------------------------------


async def test_a_full_disk_ends_the_step_and_leaves_the_layers_before_it(root: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", small], check=True)
    try:
        store = LayerStore(layers.store_with_base(small / "images", root).home)
        first = step("run_commands", commands=["echo kept > /kept"])
        before, _ = await ensure(store, image(first))
        filling = "with open('/large', 'wb') as file:\n    for _ in range(400):\n        file.write(bytes(1 << 20))"
        with pytest.raises(ImageBuildError, match="No space left on device"):
            await ensure(store, image(first, step("run_commands", commands=[f'python3 -c "{filling}"'])))
        after, lines = await ensure(store, image(first))
        assert (after, lines) == (before, [])
        assert not list((small / "images" / "staging").iterdir())
    finally:
        subprocess.run(["umount", "-l", small], check=True)


async def test_the_interpreter_of_a_prefix_is_asked_once_by_all_stores(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked, find = step("run_commands", commands=["echo asked > /asked"]), [], pythons.find

    async def counted(room: Room, env: Mapping[str, str]) -> Python | None:
        asked.append(room.staging)
        return await find(room, env)

    monkeypatch.setattr(pythons, "find", counted)
    await asyncio.gather(
        *(ensure(LayerStore(home), image(made, step("env", variables={"N": str(n)}))) for n in range(6))
    )

    assert len(asked) == 1
    assert list((home / "staging").iterdir()) == []
