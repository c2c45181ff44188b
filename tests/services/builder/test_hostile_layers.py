"""Layers whose author means harm: what the builder, which is root, does with their paths, and what builds share."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import layers
from tests.support.layers import image, step

from squall.errors import ImageBuildError
from squall_images import bytecode, pip_layer
from squall_images.beneath import beneath
from squall_images.build_room import Room
from squall_images.layered import Python
from squall_images.pip_layer import PipStep
from squall_images.store import LayerStore

pytestmark = pytest.mark.slow

SITE = "/usr/local/lib/python3/site-packages"
PYTHON = Python(
    executable="/usr/local/bin/python3",
    version=(3, 11, 0),
    site_packages=SITE,
    scripts="/usr/local/bin",
    data="/usr/local",
)
in_rooms = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layers.make_root(tmp_path_factory.mktemp("base") / "root")


@pytest.fixture
def store(root: Path, tmp_path: Path) -> LayerStore:
    return LayerStore(layers.store_with_base(tmp_path / "layers", root).home)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the builder's machine."""
    folder = tmp_path / "outside"
    for name in ("apt", "__pycache__", "known-1.0.dist-info"):
        (folder / name).mkdir(parents=True)
        (folder / name / "METADATA").write_text("Name: known\n")
    return folder


def linked(layer: Path, outside: Path) -> Path:
    """A layer whose folder of packages is a link to the builder's machine."""
    site = layer / SITE.lstrip("/")
    site.parent.mkdir(parents=True)
    site.symlink_to(outside)
    return layer


def test_a_path_in_a_layer_is_not_followed_out_of_it(tmp_path: Path, outside: Path) -> None:
    layer = linked(tmp_path / "layer", outside)
    for path in (SITE, f"{SITE}/apt", "/usr/../../x"):
        with pytest.raises(ImageBuildError):
            beneath(layer, path)
    assert beneath(layer, "/usr/local/bin/x") == layer / "usr/local/bin/x"


def test_packages_are_not_looked_for_behind_a_link(tmp_path: Path, outside: Path) -> None:
    assert pip_layer.visible([linked(tmp_path / "layer", outside)], SITE) == {}
    real = tmp_path / "other" / SITE.lstrip("/")
    (real / "known-1.0.dist-info").mkdir(parents=True)
    (real / "known-1.0.dist-info" / "METADATA").symlink_to(outside / "known-1.0.dist-info" / "METADATA")
    assert pip_layer.visible([tmp_path / "other"], SITE) == {}


def making(staging: Path, *below: Path) -> PipStep:
    return PipStep(
        title="t",
        arguments={},
        python=PYTHON,
        room=Room(below, staging),
        env={},
        home=staging,
        uv=Path("/bin/false"),
        installed=(),
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"index_url": "https://me:secret@pypi.example/simple"},
        {"requirements": "--extra-index-url https://token@pypi.example/simple\nprivate"},
        {"env": {"UV_INDEX_OURS_PASSWORD": "secret"}},
    ],
)
def test_packages_of_an_index_with_a_password_do_not_come_to_the_cache_of_all(
    tmp_path: Path, arguments: dict[str, object]
) -> None:
    step = replace(making(tmp_path), python=replace(PYTHON, libc="glibc 2.36"))
    assert replace(step, arguments={"packages": ["a"], "index_url": "https://pypi.example/simple"})._safe()
    assert not replace(step, arguments={"packages": ["a"], **arguments})._safe()


async def test_what_was_built_in_a_room_is_not_compiled_behind_a_link(tmp_path: Path, outside: Path) -> None:
    step = making(tmp_path / "staging")
    linked(step.room.changes, outside)
    await step._compile_changes()
    assert (outside / "__pycache__").is_dir()


def test_uv_on_the_builder_is_told_no_files_that_an_image_says_a_distribution_has(tmp_path: Path) -> None:
    """It removes them when it replaces the distribution."""
    info = tmp_path / "layer" / SITE.lstrip("/") / "known-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: known\n")
    (info / "RECORD").write_text(f"{'../' * 30}etc/passwd,,\n")
    making(tmp_path / "staging", tmp_path / "layer")._seed(tmp_path / "seed")
    seeded = tmp_path / "seed" / info.name
    assert (seeded / "RECORD").read_text() == f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
    assert os.path.samefile(seeded / "METADATA", info / "METADATA")


def distribution(site: Path, source: str, said: str) -> Path:
    """One module, with the RECORD of a distribution whose module is `said`."""
    info = site / "known-1.0.dist-info"
    info.mkdir(parents=True)
    digest = base64.urlsafe_b64encode(hashlib.sha256(said.encode()).digest()).rstrip(b"=").decode()
    (site / "known.py").write_text(source)
    (info / "RECORD").write_text(f"known.py,sha256={digest},{len(said)}\ninner/../../other.py,,\n")
    return site


def test_byte_code_of_a_forged_distribution_is_not_given_to_others(tmp_path: Path) -> None:
    tag = sys.implementation.cache_tag or ""
    python, cache = Path(sys.executable), tmp_path / "bytecode"
    (tmp_path / "other.py").write_text("")
    forged = distribution(tmp_path / "forged", "secret = 'stolen'", "secret = 'kept'")
    bytecode.compile_new(forged, python, tag, cache)
    honest = distribution(tmp_path / "honest", "secret = 'kept'", "secret = 'kept'")
    bytecode.compile_new(honest, python, tag, cache)
    again = distribution(tmp_path / "again", "secret = 'kept'", "secret = 'kept'")
    bytecode.compile_new(again, python, tag, cache)
    compiled = [site / "__pycache__" / f"known.{tag}.pyc" for site in (forged, honest, again)]
    assert b"stolen" in compiled[0].read_bytes()
    assert b"stolen" not in compiled[1].read_bytes()
    assert os.path.samefile(compiled[1], compiled[2])
    assert not (tmp_path / "__pycache__").exists(), "a RECORD may not name modules outside of its folder"


class TestInRooms:
    pytestmark = in_rooms

    async def test_an_interpreter_that_names_folders_outside_of_the_image_is_refused(self, store: LayerStore) -> None:
        told = PYTHON.__class__.__dataclass_fields__  # the names that a probe tells
        said = dict.fromkeys(told, "/usr") | {"site_packages": "/../../../tmp/x"}
        words = str({**said, "version": [3, 11, 0]}).replace("'", '"')
        command = f"rm /usr/local/bin/python3; printf '#!/bin/sh\\necho '\"'\"'squall-python:{words}'\"'\"'' > \
/usr/local/bin/python3; chmod +x /usr/local/bin/python3"
        with pytest.raises(ImageBuildError, match="names a folder that no image has"):
            await store.ensure(image(step("run_commands", commands=[command])), print)

    async def test_an_apt_get_of_the_image_reaches_neither_the_builder_nor_what_others_install_from(
        self, store: LayerStore, outside: Path
    ) -> None:
        def own_apt(script: str) -> object:
            command = f"printf '#!/bin/sh\\n{script}\\n' > /usr/bin/apt-get; chmod +x /usr/bin/apt-get"
            return step("run_commands", commands=[command])

        install = step("apt_install", packages=["jq"])
        linking = own_apt(f"mkdir -p /var; rm -rf /var/log; ln -s {outside} /var/log")
        with pytest.raises(ImageBuildError, match="behind a symbolic link"):
            await store.ensure(image(linking, install), print)  # type: ignore[arg-type]
        assert (outside / "apt").is_dir()
        poison = own_apt("touch /var/cache/apt/archives/evil.deb")
        await store.ensure(image(poison, install), print)  # type: ignore[arg-type]
        lines: list[str] = []
        looking = own_apt("ls /var/cache/apt/archives")
        await store.ensure(image(looking, install), lines.append)  # type: ignore[arg-type]
        assert "partial" in lines
        assert "evil.deb" not in lines

    @pytest.mark.parametrize("package", ["-oDpkg::Pre-Invoke::=id", "./evil.deb", "/tmp/evil.deb", "jq;id"])
    async def test_only_names_of_packages_are_given_to_apt(self, store: LayerStore, package: str) -> None:
        with pytest.raises(ImageBuildError, match="is not the name of a Debian package"):
            await store.ensure(image(step("apt_install", packages=[package])), print)

    async def test_users_of_the_machine_cannot_reach_programs_in_layers(self, store: LayerStore) -> None:
        found = await store.ensure(image(), print)
        assert found.layers[0].parent.parent.stat().st_mode & 0o777 == 0o700

    async def test_a_command_has_few_rights_and_makes_no_namespace_in_which_it_had_more(
        self, store: LayerStore
    ) -> None:
        asked = (
            "import ctypes; print(ctypes.CDLL(None).unshare(0x10000000));"
            "print([line.split()[1] for line in open('/proc/self/status') if line[:6] in ('CapEff', 'CapBnd')])"
        )
        lines: list[str] = []
        await store.ensure(image(step("run_commands", commands=[f'python3 -c "{asked}"'])), lines.append)
        assert lines[-2:] == ["-1", "['00000000800405fb', '00000000800405fb']"]
