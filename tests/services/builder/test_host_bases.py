"""Bases for `debian_slim` of this machine's interpreters, made when they are first asked for."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from squall.errors import ImageBuildError
from squall.spec import ImageSpec, ImageStep
from squall_images import bases as all_bases
from squall_images import chain, host_debian
from squall_images.bases import Bases, Whose
from squall_images.host_base import HostBases
from squall_images.interpreters import Interpreter
from squall_images.layered import LayerFolder

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


async def here() -> list[Interpreter]:
    return [Interpreter(Path(sys.executable), sys.version_info[:3])]


async def test_a_base_is_made_of_the_machines_python_once(tmp_path: Path) -> None:
    folder = LayerFolder(tmp_path / "images")
    bases, lines = Bases(folder, of_host=HostBases(folder, here)), list[str]()
    wanted = ImageStep("debian_slim", {"version": OWN})

    found = await asyncio.gather(*(bases.find(wanted, lines.append, Whose()) for _ in range(2)))

    assert found[0] == found[1]
    assert len(lines) == 1
    assert lines[0].startswith(f"making a base of Python {OWN}")
    assert (folder.layer(found[0].layers[0]) / "usr/local/bin/python3").exists()


async def test_a_python_that_the_machine_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    folder = LayerFolder(tmp_path / "images")
    bases = Bases(folder, of_host=HostBases(folder, here))

    with pytest.raises(ImageBuildError, match=rf"no Python 3\.99 on this machine \(found: {OWN}\)") as caught:
        await bases.find(ImageStep("debian_slim", {"version": "3.99"}), print, Whose())

    assert "Install it" in caught.value.hint
    assert folder.base_names() == []


async def test_it_stands_in_for_official_images_of_python_where_nothing_is_pulled(tmp_path: Path) -> None:
    folder = LayerFolder(tmp_path / "images")
    bases, lines = Bases(folder, of_host=HostBases(folder, here), stand_in=True), list[str]()
    official = ImageStep("from_registry", {"tag": f"python:{OWN}-slim"})

    found = await bases.find(official, lines.append, Whose())

    assert found == await bases.find(ImageStep("debian_slim", {"version": OWN}), lines.append, Whose())
    assert lines[0].startswith(
        f"warning: python:{OWN}-slim is not pulled: Python {OWN} of this machine stands in for it"
    )
    with pytest.raises(ImageBuildError, match="no registry is set"):
        await bases.find(ImageStep("from_registry", {"tag": "debian:12"}), lines.append, Whose())


def debian(root: Path) -> None:
    """What debootstrap makes, as far as bases care."""
    for folder in ("usr/bin", "usr/lib", "usr/local/bin", "usr/local/lib", "etc", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "usr/bin/apt-get").write_text("apt")
    (root / "lib").symlink_to("usr/lib")
    os.mkfifo(root / "dev/initctl")


async def test_an_image_that_needs_apt_gets_a_base_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_debian, "make", debian)
    folder = LayerFolder(tmp_path / "images")
    bases, lines = Bases(folder, of_host=HostBases(folder, here)), list[str]()
    wanted = ImageStep("debian_slim", {"version": OWN})
    plain = await bases.find(wanted, lines.append, Whose())

    found = [await bases.find(wanted, lines.append, Whose(), apt=True) for _ in range(2)]

    root = folder.layer(found[0].layers[0])
    assert found[0] == found[1] != plain
    assert (root / "usr/bin/apt-get").exists()
    assert (root / "usr/local/bin/python3").exists()
    assert not (root / "dev/initctl").exists()  # nor devices, of which some never end
    assert ["with apt" in line for line in lines] == [False, True]
    assert await bases.find(wanted, lines.append, Whose()) == plain


async def test_a_registered_base_that_has_apt_is_taken(tmp_path: Path) -> None:
    folder = LayerFolder(tmp_path / "images")
    folder.open()
    debian(tmp_path / "root")
    own = all_bases.register(folder, f"debian_slim:{OWN}", tmp_path / "root", chain.Configuration())
    bases = Bases(folder, of_host=HostBases(folder, here))
    assert await bases.find(ImageStep("debian_slim", {"version": OWN}), print, Whose(), apt=True) == own


async def test_a_machine_without_debootstrap_is_told_how_to_have_apt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_debian, "PATH", str(tmp_path))
    folder = LayerFolder(tmp_path / "images")
    bases = Bases(folder, of_host=HostBases(folder, here))
    with pytest.raises(ImageBuildError, match="the image needs apt, and debootstrap") as caught:
        await bases.find(ImageStep("debian_slim", {"version": OWN}), print, Whose(), apt=True)
    assert "apt-get install debootstrap" in caught.value.hint
    assert folder.base_names() == []


@pytest.mark.parametrize(
    ("kind", "arguments", "needs"),
    [
        ("apt_install", {"packages": ["git"]}, True),
        ("run_commands", {"commands": ["echo 1", "apt-get update && apt-get install -y git"]}, True),
        ("run_commands", {"commands": ["DEBIAN_FRONTEND=noninteractive apt install -y git"]}, True),
        ("run_commands", {"commands": ["adapt things"]}, False),
        (
            "run_commands",
            {"commands": ["rm -rf /var/lib/apt/lists/*", "mkdir /opt/apt", "pip install apt-x"]},
            False,
        ),
        ("pip_install", {"packages": ["apt"]}, False),
    ],
)
def test_which_images_need_apt(kind: str, arguments: dict[str, object], needs: bool) -> None:
    image = ImageSpec(steps=(ImageStep("debian_slim", {"version": OWN}), ImageStep(kind, arguments)))
    assert chain.chain(image).needs_apt is needs
