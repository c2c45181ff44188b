"""What is asked of a machine before it is said to have sandboxes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from squall_isolation import machine


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine that has everything; its programs are in a folder that is the whole PATH."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", "6.1.0-13-amd64", "#1", "x86_64")))
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    (tmp_path / "sys/user").mkdir(parents=True)
    (tmp_path / "sys/user/max_user_namespaces").write_text("96000\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in machine.TOOLS:
        (programs / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))
    return tmp_path


def test_root_on_a_new_linux_with_the_tools_lacks_nothing(proc: Path) -> None:
    assert machine.lacking(proc) == ""


def test_an_old_kernel_is_named(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "here", "5.15.0-91", "#1", "x86_64")))
    assert machine.lacking(proc) == "they need Linux 5.19, this is 5.15.0-91"


def test_another_user_than_root_cannot_have_them(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.lacking(proc) == "they need root"


def test_root_of_an_unprivileged_container_is_told_apart(proc: Path) -> None:
    (proc / "self/status").write_text("CapEff:\t00000000a80425fb\n")  # as Docker gives it
    assert machine.lacking(proc) == "root has no SYS_ADMIN, NET_ADMIN here, as in an unprivileged container"


@pytest.mark.parametrize("text", ["0\n", None])
def test_a_kernel_without_user_namespaces_is_told(proc: Path, text: str | None) -> None:
    limit = proc / "sys/user/max_user_namespaces"
    limit.unlink() if text is None else limit.write_text(text)
    assert "user namespaces are turned off" in machine.lacking(proc)


def test_sandboxes_without_a_network_are_not_given_by_themselves(proc: Path) -> None:
    (proc / "bin/nft").unlink()
    assert machine.lacking(proc).startswith("nft not found")
