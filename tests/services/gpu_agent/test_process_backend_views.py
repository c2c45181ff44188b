"""Bundles with files that user code opens at absolute paths."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sdk.runner.containers import Workshop, call, images_dir, value, workshop

from squall_gpu_agent.backends.bundle_view import needs_view

__all__ = ["images_dir", "workshop"]

pytestmark = pytest.mark.slow

FILES = {
    "root/app.py": """
        import os, sys
        import helper
        def f(path):
            with open(path) as file:
                return file.read(), os.getcwd(), sys.executable, os.path.exists("/etc/passwd")
        def write(path):
            with open(path, "w") as file:
                file.write("written")
            return sorted(os.listdir(os.path.dirname(path)))
        """,
    "root/helper.py": "",
    "root/config/settings.txt": "settings",
    "data-of-squall-test/deep/model.txt": "model",
    "usr/share/squall-test/words.txt": "words",
    "etc/squall-test.conf": "conf",
}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("root/pkg/module.py", None),
        ("root/pkg/lib.so", None),
        ("root/data.json", "/root/data.json"),
        ("data/x.py", "/data/x.py"),
    ],
)
def test_only_files_that_are_not_imported_from_root_need_a_view(tmp_path: Path, name: str, found: str | None) -> None:
    for file in ("root/app.py", name):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert needs_view(str(tmp_path)) == found


async def test_a_program_that_names_root_finds_its_python_files_there(workshop: Workshop) -> None:
    if not (await workshop.backend.probe()).mount_namespaces:
        pytest.skip("no mount namespaces here")
    read = "def f(path):\n    with open(path) as file:\n        return file.read()\n"
    plain = await workshop.start({"root/app.py": read, "root/page.py": "page"})
    named = await workshop.start({"root/app.py": read + "PAGE = '/root/page.py'\n", "root/page.py": "page"})
    assert value(await call(named, "/root/page.py")) == "page"
    assert "FileNotFoundError" in str(await call(plain, "/root/page.py"))


@pytest.mark.parametrize("use_template", [False, True])
async def test_files_are_where_they_were_put(workshop: Workshop, use_template: bool) -> None:
    if not (await workshop.backend.probe()).mount_namespaces:
        pytest.skip("no mount namespaces here")
    container = await workshop.start(FILES, use_template=use_template)
    assert container.how == ("fork" if use_template else "fresh")
    for path, text in (
        ("/root/config/settings.txt", "settings"),
        ("config/settings.txt", "settings"),
        ("/data-of-squall-test/deep/model.txt", "model"),
        ("/usr/share/squall-test/words.txt", "words"),
        ("/etc/squall-test.conf", "conf"),
    ):
        read, cwd, _, has_passwd = value(await call(container, path))
        assert (read, cwd, has_passwd) == (text, "/root", True)
    assert not Path("/data-of-squall-test").exists()
    assert not Path("/etc/squall-test.conf").exists()


async def test_writes_go_to_the_container_and_not_to_the_machine_or_the_bundle(workshop: Workshop) -> None:
    if not (await workshop.backend.probe()).mount_namespaces:
        pytest.skip("no mount namespaces here")
    request = workshop.request(FILES, "write")
    one, two = await workshop.launch(request), await workshop.again(request)
    assert value(await call(one, "/root/config/new.txt")) == ["new.txt", "settings.txt"]
    assert {"app.py", "squall-test-new.txt"} <= set(value(await call(one, "/root/squall-test-new.txt")))
    assert value(await call(two, "/data-of-squall-test/deep/model.txt")) == ["model.txt"]
    assert not Path("/root/squall-test-new.txt").exists()
    assert sorted(path.name for path in (request.code_dir / "root" / "config").iterdir()) == ["settings.txt"]
    assert (request.code_dir / "data-of-squall-test/deep/model.txt").read_text() == "model"
    await one.stop()
    await two.stop()


async def test_calls_back_to_the_agent_reach_its_socket(workshop: Workshop) -> None:
    if not (await workshop.backend.probe()).mount_namespaces:
        pytest.skip("no mount namespaces here")
    path = workshop.folder / "sock" / "agent.sock"
    path.parent.mkdir()
    said: list[bytes] = []

    async def on_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append(await reader.readline())
        writer.write(b"answer\n")
        writer.close()

    server = await asyncio.start_unix_server(on_call, path)
    async with server:
        container = await workshop.start(
            {
                "root/app.py": """
                    import os, socket
                    def f():
                        with socket.socket(socket.AF_UNIX) as s:
                            s.connect(os.environ["SQUALL_SOCKET"])
                            s.sendall(b"hello\\n")
                            return s.recv(100)
                    """,
                "root/data.txt": "x",
            },
            socket_path=path,
        )
        assert value(await call(container)) == b"answer\n"
    assert said == [b"hello\n"]


@pytest.mark.root
def test_an_agent_without_root_shows_the_files_too(tmp_path: Path) -> None:
    """As the user nobody, with copies of what that user cannot read here."""
    home = Path("/tmp") / f"squall-nobody-{os.getpid()}"
    try:
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        answer = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "view_as_nobody.py"), str(home)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        written, refused = (
            ["weights0", "['weights.txt'] weights0"],
            ["weights1", "Read-only file system", "[] weights1"],
        )
        assert answer.stdout.splitlines() == ["model settings", *written, *refused]
    finally:
        shutil.rmtree(home, ignore_errors=True)
    assert stat.S_ISDIR(os.stat("/root").st_mode)
