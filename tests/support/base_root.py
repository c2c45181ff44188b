"""A small root file system with this machine's CPython, for tests of containers where no registry can be reached.

Owns what goes in: the interpreter with pip, a shell and small tools, every shared object that these name, the C library
whole (wheels load parts of it by name), users, and the machine's certificates.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

TOOLS = [
    "cat",
    "chmod",
    "chown",
    "cp",
    "cut",
    "date",
    "env",
    "false",
    "grep",
    "head",
    "id",
    "install",
    "ln",
    "ls",
    "mkdir",
    "mktemp",
    "mv",
    "nproc",
    "readlink",
    "rm",
    "sed",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tar",
    "tee",
    "touch",
    "tr",
    "true",
    "uname",
    "wc",
]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
ACCOUNT_TOOLS = ("/usr/sbin/groupadd", "/usr/sbin/useradd")
LIBRARIES = ("libc6", "libgcc-s1", "libstdc++6", "libcrypt1")
NOT_IN_IT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "__pycache__", "site-packages", "dist-packages")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "SSL_CERT_FILE": CERTIFICATES,
    "REQUESTS_CA_BUNDLE": CERTIFICATES,
    "PIP_CERT": CERTIFICATES,
}
_FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "nsswitch.conf": "hosts: files dns\npasswd: files\ngroup: files\n",
    "ld.so.conf": "/usr/local/lib\n/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu\n",
}


def make(root: Path, more: Sequence[str] = ()) -> Path:
    """Fill the folder; the interpreter is /usr/local/bin/python3 in it. `more`: tools besides. Takes about 3 s."""
    for each in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local/bin", "usr/local/lib", "etc/ssl/certs"):
        (root / each).mkdir(parents=True)
    for each in ("root", "proc", "sys", "dev", "run", "tmp", "var/tmp", "home"):
        (root / each).mkdir(parents=True)
    for each in ("bin", "sbin", "lib", "lib64"):
        (root / each).symlink_to(f"usr/{each}")
    for each in ("tmp", "var/tmp"):
        (root / each).chmod(0o1777)
    _python(root)
    programs = [Path(found) for tool in (*TOOLS, *more) if (found := shutil.which(tool, path=PATH))]
    for program in (*programs, *map(Path, ACCOUNT_TOOLS)):
        shutil.copy(program, root / "usr" / program.parent.name / program.name)
    shutil.copy("/bin/dash", root / "usr/bin/sh")
    for name, text in _FILES.items():
        (root / "etc" / name).write_text(text)
    shutil.copy(CERTIFICATES, root / CERTIFICATES[1:])
    _shared_objects(root)
    subprocess.run(["/sbin/ldconfig", "-X", "-r", root], check=True, capture_output=True)
    return root


def program(root: Path, path: Path) -> Path:
    """Fill the folder with one program of this machine and the shared objects that it names."""
    for each in (root / str(path).lstrip("/"), root / "etc/group", root / "tmp/.", root / "data/."):
        each.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, root / str(path).lstrip("/"))
    for name in set(_needed([path])):
        _copy_library(root, name)
    return root


def packed(root: Path, archive: Path) -> Path:
    """The folder as a tar that is the same for the same files."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = 0
        return info

    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, str(path.relative_to(root)), recursive=False, filter=plain)
    return archive


def _python(root: Path) -> None:
    prefix, local = Path(sys.base_prefix), root / "usr/local"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy((prefix / "bin" / version).resolve(), local / "bin" / version)
    for name in ("python3", "python"):
        (local / "bin" / name).symlink_to(version)
    shutil.copytree(
        prefix / "lib" / version,
        local / "lib" / version,
        symlinks=True,
        ignore=shutil.ignore_patterns(*NOT_IN_IT, "*.a", "config-*"),
    )
    for library in (prefix / "lib").glob(f"lib{version}*.so*"):
        shutil.copy(library, local / "lib" / library.name, follow_symlinks=False)
    (local / "lib" / version / "site-packages").mkdir()
    for wheel in (prefix / "lib" / version / "ensurepip/_bundled").glob("pip-*.whl"):
        with zipfile.ZipFile(wheel) as packed_pip:
            packed_pip.extractall(local / "lib" / version / "site-packages")


def _shared_objects(root: Path) -> None:
    listed = subprocess.run(["dpkg", "-L", *LIBRARIES], capture_output=True, text=True, check=True).stdout.split()
    for name in {each for each in listed if re.search(r"\.so(\.|$)", each) and "/gconv/" not in each}:
        _copy_library(root, name)
    for name in set(_needed(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())):
        _copy_library(root, name)


def _needed(programs: Iterable[Path]) -> Iterator[str]:
    """What these load, by absolute path. Files that are no programs load nothing."""
    binaries = [str(path) for path in programs if _is_elf(path)]
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}
    told = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False, env=environment).stdout
    for found in re.findall(r"(/\S+\.so\S*) \(0x", told):
        if not found.startswith(sys.base_prefix) or sys.base_prefix == "/usr":
            yield found


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _copy_library(root: Path, name: str) -> None:
    if not Path(name).is_file():
        return
    target = root / name.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy(name, target)
