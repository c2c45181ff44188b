"""Images as environments: keys, reuse, failures, interpreters. Packages are wheels made here; no index is asked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from tests.sdk.runner.containers import Workshop, call, images_dir, value, workshop

from squall.errors import ImageBuildError
from squall.spec import ImageSpec, ImageStep
from squall_gpu_agent.backend import StartFailed
from squall_images.environments import EnvironmentStore
from squall_images.keys import plan

__all__ = ["images_dir", "workshop"]

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


def wheel(folder: Path, name: str, version: str = "1.0", requires: str = "") -> None:
    """A wheel with one module of that name."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()}
    record = "".join(f"{path},sha256={digest.decode().rstrip('=')},\n" for path, digest in hashes.items())
    record += f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


def pip(folder: Path, *packages: str) -> ImageStep:
    """A step that installs from that folder only."""
    return ImageStep(
        "pip_install",
        {"packages": list(packages), "find_links": str(folder), "extra_options": "--no-index --offline"},
    )


def apt(*packages: str) -> ImageStep:
    return ImageStep("apt_install", {"packages": list(packages)})


def image(*steps: ImageStep, python: str = OWN) -> ImageSpec:
    return ImageSpec(python, (ImageStep("base"), *steps))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    wheel(folder, "alpha", requires="beta")
    wheel(folder, "beta")
    wheel(folder, "gamma")
    wheel(folder, "gamma", "2.0")
    return folder


def test_keys_are_equal_for_equal_prefixes_and_do_not_depend_on_variables() -> None:
    folder = Path("/w")
    one = plan(image(pip(folder, "a"), pip(folder, "b")))
    two = plan(image(pip(folder, "a"), ImageStep("env", {"X": "1"}), pip(folder, "c")))
    assert one.layers[0].key == two.layers[0].key
    assert one.key != two.key
    assert two.env == {"X": "1"}
    assert plan(image(python="3.12")).key != plan(image(python="3.13")).key


def test_a_step_that_environments_cannot_have_is_named() -> None:
    with pytest.raises(ImageBuildError, match="image step 2 is 'run_commands'"):
        plan(image(ImageStep("run_commands", {"commands": ["true"]})))
    with pytest.raises(ImageBuildError, match="'entrypoint'"):
        plan(image(ImageStep("entrypoint", {"command": ["/bin/tini"]})))


def test_steps_that_say_nothing_about_functions_change_nothing() -> None:
    steps = (ImageStep("entrypoint", {"command": []}), ImageStep("cmd", {"command": ["x"]}), ImageStep("shell", {}))
    assert plan(image(*steps)).key == plan(image()).key


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="no dpkg here")
async def test_packages_of_the_machine_are_asked_for_and_never_installed(tmp_path: Path) -> None:
    store = EnvironmentStore(tmp_path / "images")
    there, lacking = ["dpkg", "libc6:amd64", "base-files=1.0"], ["no-such-package", "nor-this/stable"]
    plain = await store.ensure(image(), lambda _: None)
    assert (await store.ensure(image(apt(*there)), lambda _: None)).prefix == plain.prefix
    with pytest.raises(ImageBuildError, match="does not have no-such-package, nor-this/stable,") as caught:
        await store.ensure(image(apt(*there, *lacking)), lambda _: None)
    assert "apt-get install no-such-package" in caught.value.hint


def test_an_official_image_of_python_is_this_machines_python_and_says_so() -> None:
    official = ImageSpec("", (ImageStep("from_registry", {"tag": "python:3.12-slim"}), ImageStep("env", {"A": "1"})))
    found = plan(official)
    assert found.python_version == "3.12"
    assert "python:3.12-slim is not pulled: Python 3.12 of this machine stands in" in found.stands_in
    assert found.key == plan(ImageSpec("3.12")).key
    assert not plan(ImageSpec("3.12")).stands_in
    for others in (
        ImageSpec("", (ImageStep("from_registry", {"tag": "debian:12"}),)),
        ImageSpec("3.12", (*official.steps, ImageStep("add_python", {"version": "3.12"}))),
    ):
        with pytest.raises(ImageBuildError, match="plain processes cannot have"):
            plan(others)


def test_package_options_become_arguments() -> None:
    step = ImageStep(
        "pip_install",
        {
            "packages": ["a"],
            "index_url": "https://i",
            "extra_index_url": ["https://e"],
            "find_links": "/f",
            "pre": True,
            "extra_options": "--no-deps",
        },
    )
    (layer,) = plan(image(step)).layers
    assert " ".join(layer.options) == (
        "--default-index https://i --index https://e --find-links /f --prerelease allow --no-deps"
    )


@pytest.mark.slow
async def test_packages_are_importable_with_their_byte_code(workshop: Workshop, wheels: Path) -> None:
    container = await workshop.start(
        "import alpha, beta\ndef f(): return alpha.version, beta.__cached__", image=image(pip(wheels, "alpha"))
    )
    version, compiled = value(await call(container))
    assert version == "1.0"
    assert Path(compiled).exists()


@pytest.mark.slow
async def test_a_longer_chain_reuses_the_shorter_one_and_leaves_it_alone(tmp_path: Path, wheels: Path) -> None:
    store = EnvironmentStore(tmp_path / "images")
    lines: list[str] = []
    short = await store.ensure(image(pip(wheels, "gamma==1.0")), lines.append)
    long = await store.ensure(image(pip(wheels, "gamma==1.0"), pip(wheels, "gamma==2.0")), lines.append)
    assert (short.site_packages / "gamma.py").read_text() == "version = '1.0'\n"
    assert (long.site_packages / "gamma.py").read_text() == "version = '2.0'\n"
    assert lines.count("pip_install gamma==1.0") == 1
    again: list[str] = []
    assert await store.ensure(image(pip(wheels, "gamma==1.0")), again.append) == short
    assert again == []


@pytest.mark.slow
async def test_byte_code_is_compiled_once_per_distribution(tmp_path: Path, wheels: Path) -> None:
    store = EnvironmentStore(tmp_path / "images")
    one = await store.ensure(image(pip(wheels, "beta")), lambda _: None)
    two = await store.ensure(image(pip(wheels, "beta", "gamma")), lambda _: None)
    compiled = [next((e.site_packages / "__pycache__").glob("beta.*.pyc")) for e in (one, two)]
    assert compiled[0].stat().st_ino == compiled[1].stat().st_ino


@pytest.mark.slow
async def test_concurrent_requests_for_one_image_build_it_once(tmp_path: Path, wheels: Path) -> None:
    stores = [EnvironmentStore(tmp_path / "images") for _ in range(3)]
    lines: list[str] = []
    wanted = image(pip(wheels, "alpha"))
    found = await asyncio.gather(*(store.ensure(wanted, lines.append) for store in stores for _ in range(3)))
    assert len({environment.prefix for environment in found}) == 1
    assert lines.count("pip_install alpha") == 1


@pytest.mark.slow
async def test_a_failed_step_has_its_output_and_leaves_nothing(tmp_path: Path, wheels: Path) -> None:
    store = EnvironmentStore(tmp_path / "images")
    lines: list[str] = []
    with pytest.raises(ImageBuildError) as caught:
        await store.ensure(image(pip(wheels, "delta")), lines.append)
    assert caught.value.data["step"] == "pip_install delta"
    assert caught.value.data["exit_code"] == 1
    assert "delta" in caught.value.data["output"]
    assert any("delta" in line for line in lines[1:])
    envs = list((tmp_path / "images" / "envs").iterdir())
    assert len(envs) == 1  # the base; no half-made layer


@pytest.mark.slow
async def test_a_build_that_was_given_up_leaves_nothing(tmp_path: Path, wheels: Path) -> None:
    store = EnvironmentStore(tmp_path / "images")
    await store.ensure(image(), lambda _: None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await store.ensure(image(pip(wheels, "alpha")), lambda _: None)
    assert len(list((tmp_path / "images" / "envs").iterdir())) == 1
    await store.ensure(image(pip(wheels, "alpha")), lambda _: None)


async def test_packages_of_the_host_are_not_visible(workshop: Workshop) -> None:
    container = await workshop.start(
        "def f():\n    try:\n        import pydantic\n    except ImportError:\n        return 'hidden'"
    )
    assert value(await call(container)) == "hidden"


@pytest.mark.slow
async def test_every_python_of_this_machine_runs_functions(workshop: Workshop) -> None:
    found = sorted({python.minor for python in await EnvironmentStore(workshop.folder).interpreters()})
    print("pythons:", *found)
    source = """
        import sys, asyncio
        import squall.spec
        async def f(x):
            print("on", sys.version_info[:2])
            await asyncio.sleep(0)
            return sys.version_info[:2], sys.prefix, x
        """
    for minor in found:
        for use_template in (True, False):
            container = await workshop.start(source, image=image(python=minor), use_template=use_template)
            version, prefix, x = value(await call(container, b"x"))
            assert ".".join(map(str, version)) == minor
            assert "envs" in prefix
            assert x == b"x"
            assert container.how == ("fork" if use_template else "fresh")
            assert workshop.printed(container).startswith("on (3, ")
            assert (await container.stop()).reason == "stopped"


async def test_a_requirements_file_is_installed(workshop: Workshop, wheels: Path) -> None:
    listed = ImageStep(
        "pip_install",
        {"requirements": "gamma==1.0\nalpha\n", "find_links": str(wheels), "extra_options": "--no-index --offline"},
    )
    container = await workshop.start("def f():\n import alpha, beta, gamma\n return gamma.version", image=image(listed))
    assert value(await call(container)) == "1.0"


async def test_containers_start_in_the_working_folder_of_their_image(workshop: Workshop) -> None:
    steps = [ImageStep("workdir", {"path": "data"}), ImageStep("workdir", {"path": "deep"})]
    request = workshop.request("import os\ndef f(): return os.getcwd()", image=image(*steps))
    container = await workshop.launch(request)
    assert value(await call(container)).endswith("/root/data/deep")


async def test_a_working_folder_that_is_not_there_fails_the_start(workshop: Workshop) -> None:
    steps = ImageStep("workdir", {"path": "/no/such/folder"})
    with pytest.raises(StartFailed, match="/no/such/folder"):
        await workshop.start("def f(): pass", image=image(steps))
