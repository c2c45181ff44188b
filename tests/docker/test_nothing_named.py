"""A platform to which nobody has said how it shall make containers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.docker.sandboxes import shared_base_root
from tests.support.platform import Platform

from squall_images import bases
from squall_images.chain import Configuration
from squall_images.layered import LayerFolder

pytestmark = [pytest.mark.slow, pytest.mark.root]

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
PROGRAM = Path(__file__).parent / "programs" / "with_its_own_files.py"


def test_a_program_whose_image_has_files_of_its_own_just_runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    platform = Platform()
    folder = LayerFolder(platform.data / "images")
    folder.open()
    bases.register(folder, f"debian_slim:{OWN}", shared_base_root(tmp_path_factory), Configuration())
    with platform as started:
        said = started.squall("run", PROGRAM, timeout_s=180).stdout.splitlines()
        (node,) = json.loads(started.squall("node", "list", "--json").stdout)

    assert f"lines {len(PROGRAM.read_text().splitlines())}" in said
    assert "networks lo" in said
    assert "in a pid namespace of its own: False" in said
    assert node["backends"] == ["process", "sandbox"]
