"""Dockerfiles by a real engine: their layers as layers of an image, lines of them on top of one, and what fails."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from tests.support import engine, layers
from tests.support.layers import image, step
from tests.support.platform import SQUALL, Platform

from squall.errors import ImageBuildError
from squall.spec import ImageSpec, ImageStep
from squall_images.bases import Bases
from squall_images.build_room import Room, Work
from squall_images.chain import PATH
from squall_images.dockerfile_steps import Dockerfiles
from squall_images.layered import LayeredImage, LayerFolder
from squall_images.store import LayerStore

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow]
EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {"sha256": "x", "bytes": 1}


async def fetch(reference: object, folder: Path) -> None:
    folder.mkdir()
    (folder / "given").write_text("given")


def engine_of(home: Path) -> tuple[Dockerfiles, LayerFolder]:
    folder = LayerFolder(home)
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    return Dockerfiles(folder, host, "none", fetch, 90), folder


def a_store(home: Path) -> LayerStore:
    docker, folder = engine_of(home)
    return LayerStore(home, bases=Bases(folder, dockerfile=docker.base), dockerfiles=docker)


def a_dockerfile(*lines: str, **arguments: object) -> ImageStep:
    text = "\n".join([f"FROM {engine.BASE}", *lines])
    return step("from_dockerfile", text=text, **arguments)


async def said(found: LayeredImage, home: Path, command: str) -> str:
    lines: list[str] = []
    scratch = home / "staging" / "test"
    work = Work(command=["/bin/sh", "-c", command], env={"PATH": PATH, **found.env}, workdir=found.workdir or "/root")
    try:
        await Room(found.layers, scratch).run("test", work, lines.append)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return "\n".join(lines)


async def test_a_dockerfile_becomes_layers_and_lines_of_one_a_layer(tmp_path: Path) -> None:
    engine.base_image()
    name = os.urandom(4).hex()  # the engine remembers what it built for earlier tests
    home = layers.store_with_base(tmp_path / "layers", layers.make_root(tmp_path / "root")).home
    store, lines = a_store(home), list[str]()
    dockerfile = a_dockerfile(
        *("ARG NAME=nobody", "ENV COLOUR=blue", "WORKDIR /srv", "COPY given /given"),
        *("RUN echo said $NAME && echo $NAME > made && rm /etc/passwd", 'CMD ["python3"]'),
        build_args={"NAME": name},
        context=FILES,
        env={"MORE": "1"},
    )
    first = await store.ensure(ImageSpec("", (dockerfile,)), lines.append)
    assert f"said {name}" in lines
    assert (first.env["COLOUR"], first.env["MORE"], first.workdir, first.cmd) == ("blue", "1", "/srv", ("python3",))
    assert first.python_version == layers.OWN
    assert stat.S_ISCHR((first.layers[-2] / "etc/passwd").lstat().st_mode)
    looked = "cat made /given; echo; pwd; test -e /etc/passwd || echo gone"
    assert await said(first, home, looked) == f"{name}\ngiven\n/srv\ngone"

    # The layers are there: the same with one more step of ours builds and takes over nothing.
    lines.clear()
    more = await store.ensure(ImageSpec("", (dockerfile, step("run_commands", commands=["cat made"]))), lines.append)
    assert more.layers[:-1] == first.layers
    assert lines == ["run_commands cat made", name]

    # Lines of a Dockerfile on an image of ours.
    commands = step(
        "dockerfile_commands",
        text="COPY given /etc/given\nRUN echo one > /one; mkdir /d; echo a > /d/a; echo $OWN\n"
        "RUN rm /one /etc/nsswitch.conf; rm -r /d; mkdir /d; echo b > /d/b\nENV LATER=yes\nWORKDIR /d",
        context=FILES,
    )
    own = step("env", variables={"OWN": name + ' "quoted" $word \\'})
    lines.clear()
    made = await store.ensure(image(own, commands, step("run_commands", commands=["echo $LATER; ls"])), lines.append)
    assert name + ' "quoted" $word \\' in lines
    assert lines[-2:] == ["yes", "b"]
    assert (made.env["LATER"], made.env["OWN"], made.workdir) == ("yes", name + ' "quoted" $word \\', "/d")
    changed = made.layers[2]
    assert sorted(path.name for path in (changed / "d").iterdir()) == ["b"]
    assert stat.S_ISCHR((changed / "etc/nsswitch.conf").lstat().st_mode)
    assert (changed / "etc/given").read_text() == "given"
    assert await said(made, home, "cat /d/b; test -e /one || echo gone") == "b\ngone"

    with pytest.raises(ImageBuildError, match="broken") as caught:
        await store.ensure(ImageSpec("", (a_dockerfile("RUN echo broken; exit 3"),)), print)
    assert caught.value.data["exit_code"] == 3
    away = "import socket; socket.create_connection(('1.1.1.1', 53), 3)"
    with pytest.raises(ImageBuildError, match="unreachable"):
        await store.ensure(ImageSpec("", (a_dockerfile(f'RUN python3 -c "{away}"'),)), print)
    assert not list((home / "staging").iterdir())
    shutil.rmtree(home / "layers")
    docker, _ = engine_of(home)
    await docker.sweep()
    assert engine.docker("images", "-q", docker._repository) == ""


async def test_without_an_engine_the_error_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="needs a container engine") as caught:
        await LayerStore(tmp_path / "none").ensure(ImageSpec("", (a_dockerfile(),)), print)
    assert "SQUALL_BUILDER_DOCKER_HOST" in caught.value.hint
    folder = LayerFolder(tmp_path / "gone")
    gone = Dockerfiles(folder, "unix:///nonexistent/docker.sock", "none", fetch, 30)
    store = LayerStore(tmp_path / "gone", bases=Bases(folder, dockerfile=gone.base), dockerfiles=gone)
    with pytest.raises(ImageBuildError, match="broke off") as caught:
        await store.ensure(ImageSpec("", (a_dockerfile(),)), print)
    assert "SQUALL_BUILDER_DOCKER_HOST" in caught.value.hint


@pytest.mark.timeout(300)
def test_the_example_of_a_function_in_the_image_of_a_dockerfile() -> None:
    base = engine.base_image()
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    platform = Platform(arguments=("--backend", "sandbox"), environment={"SQUALL_BUILDER_DOCKER_HOST": host})
    with platform as started:
        words = (SQUALL, "run", EXAMPLES / "dockerfile_function.py")
        child = started.popen(*words, BASE=base)
        out, errors = child.communicate(timeout=240)
    assert out.splitlines()[-1:] == ["hello from a Dockerfile, in /opt/words: birch, elder, walnut"], errors
