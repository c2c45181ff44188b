"""The bundle: which files travel with a function, where they lie in the container, and that it is deterministic."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from squall import FilePatternMatcher, Image, bundle, exception, patterns

SRC = Path(__file__).resolve().parents[2] / "sdk" / "src"


def hash_of(files: dict[str, str]) -> str:
    with bundle.zipped(files) as archive:
        return archive.sha256


def below(folder: Path, names: dict[str, str]) -> Path:
    """A folder with files."""
    for name, text in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(code: str, cwd: Path, *arguments: str) -> str:
    """Output of a Python program in a folder."""
    environment = {"PYTHONPATH": f"{SRC}{os.pathsep}{cwd}", "PATH": os.environ["PATH"]}
    command = [sys.executable, *(arguments or ("-c", code))]
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


SHOW = """
from squall import bundle
source = bundle.source_of({what}, {include})
print(source.module, *sorted(source.files))
"""


def test_a_script_is_one_file_under_its_stem(tmp_path: Path) -> None:
    below(tmp_path, {"app.py": "def f(): pass\n" + SHOW.format(what="f", include=True), "helper.py": ""})
    assert run("", tmp_path, "app.py") == "app /root/app.py"


def test_a_module_beside_the_script_brings_its_own_file(tmp_path: Path) -> None:
    below(tmp_path, {"jobs.py": "def f(): pass\n"})
    assert run("import jobs\n" + SHOW.format(what="jobs.f", include=True), tmp_path) == "jobs /root/jobs.py"


def test_a_module_of_a_package_brings_the_whole_package(tmp_path: Path) -> None:
    below(
        tmp_path,
        {"pkg/__init__.py": "", "pkg/sub/__init__.py": "", "pkg/sub/jobs.py": "def f(): pass", "pkg/x.txt": ""},
    )
    shown = run("import pkg.sub.jobs\n" + SHOW.format(what="pkg.sub.jobs.f", include=True), tmp_path)
    assert shown == "pkg.sub.jobs /root/pkg/__init__.py /root/pkg/sub/__init__.py /root/pkg/sub/jobs.py"


def test_a_module_run_with_m_has_its_dotted_name(tmp_path: Path) -> None:
    below(tmp_path, {"pkg/__init__.py": "", "pkg/jobs.py": "def f(): pass\n" + SHOW.format(what="f", include=True)})
    assert run("", tmp_path, "-m", "pkg.jobs") == "pkg.jobs /root/pkg/__init__.py /root/pkg/jobs.py"


def test_source_can_be_left_out(tmp_path: Path) -> None:
    below(tmp_path, {"jobs.py": "def f(): pass\n"})
    assert run("import jobs\n" + SHOW.format(what="jobs.f", include=False), tmp_path) == "jobs"


def test_an_interactive_function_has_no_source(tmp_path: Path) -> None:
    code = """
from squall import bundle, errors
def f(): pass
try:
    bundle.source_of(f, True)
except errors.InvalidError as error:
    print(error)
"""
    assert "interactive" in run(code, tmp_path)


def test_local_files_and_folders_lie_where_they_were_put(tmp_path: Path) -> None:
    data = below(tmp_path / "data", {"a.txt": "a", "sub/b.txt": "b", "sub/c.log": "c", "__pycache__/x.pyc": ""})
    image = (
        Image.debian_slim().add_local_dir(data, "/data/", ignore=["**/*.log"]).add_local_file(data / "a.txt", "/etc/")
    )
    assert bundle.local_files(image) == {
        "/data/a.txt": str(data / "a.txt"),
        "/data/sub/b.txt": str(data / "sub/b.txt"),
        "/etc/a.txt": str(data / "a.txt"),
    }


def test_ignore_may_be_a_function_of_the_path(tmp_path: Path) -> None:
    data = below(tmp_path, {"keep.txt": "", "drop.bin": ""})
    image = Image.debian_slim().add_local_dir(data, "/d", ignore=lambda path: path.suffix == ".bin")
    assert list(bundle.local_files(image)) == ["/d/keep.txt"]


def test_a_pattern_matcher_ignores_what_it_matches_or_all_else(tmp_path: Path) -> None:
    data = below(tmp_path / "data", {"keep.txt": "", "sub/drop.bin": ""})
    below(tmp_path, {".dockerignore": "# comment\n**/*.bin\n"})
    base = Image.debian_slim()
    for ignore, left in (
        (FilePatternMatcher("**/*.bin"), ["/d/keep.txt"]),
        (~FilePatternMatcher("**/*.bin"), ["/d/sub/drop.bin"]),
        (~~FilePatternMatcher("**/*.bin", "keep.*"), []),
        (FilePatternMatcher.from_file(tmp_path / ".dockerignore"), ["/d/keep.txt"]),
    ):
        assert list(bundle.local_files(base.add_local_dir(data, "/d", ignore=ignore))) == left
    with pytest.raises(exception.InvalidError, match="nowhere"):
        FilePatternMatcher.from_file(tmp_path / "nowhere")
    with pytest.raises(exception.InvalidError, match="as text"):
        FilePatternMatcher(["*.bin"])  # type: ignore[arg-type]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    below(tmp_path, {"real/a.txt": "a"})
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files = bundle.local_files(Image.debian_slim().add_local_dir(tmp_path, "/d"))
    assert sorted(files) == ["/d/link/a.txt", "/d/real/a.txt"]


def test_python_source_brings_modules_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below(
        tmp_path, {"single_mod.py": "", "whole_pkg/__init__.py": "", "whole_pkg/data.json": "", "whole_pkg/in/x.py": ""}
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    image = Image.debian_slim().add_local_python_source("single_mod", "whole_pkg")
    assert sorted(bundle.local_files(image)) == [
        "/root/single_mod.py",
        "/root/whole_pkg/__init__.py",
        "/root/whole_pkg/in/x.py",
    ]
    everything = Image.debian_slim().add_local_python_source("whole_pkg", ignore=[])
    assert "/root/whole_pkg/data.json" in bundle.local_files(everything)


@pytest.mark.parametrize("name", ["no_such_module_here", "no_such.module_here", "_thread"])
def test_modules_that_cannot_be_added_are_named(name: str) -> None:
    with pytest.raises(exception.ModuleNotMountable, match=name):
        bundle.local_files(Image.debian_slim().add_local_python_source(name))


def test_a_missing_path_is_told_when_it_is_needed_with_the_path(tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    with pytest.raises(exception.InvalidError, match=r"missing\.txt"):
        bundle.local_files(Image.debian_slim().add_local_file(missing, "/x"))
    with pytest.raises(exception.InvalidError, match="folder"):
        bundle.local_files(Image.debian_slim().add_local_dir(missing, "/x"))


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one = below(tmp_path / "one", {"a.py": "a", "b.py": "b"})
    other = below(tmp_path / "other", {"b.py": "b", "a.py": "a"})
    os.utime(other / "a.py", (1, 1))
    (other / "b.py").chmod(0o640)
    first = hash_of({"/root/a.py": str(one / "a.py"), "/root/b.py": str(one / "b.py")})
    assert hash_of({"/root/b.py": str(other / "b.py"), "/root/a.py": str(other / "a.py")}) == first
    (other / "a.py").write_text("changed")
    assert hash_of({"/root/b.py": str(other / "b.py"), "/root/a.py": str(other / "a.py")}) != first


def test_paths_in_the_zip_mirror_the_container_and_programs_stay_executable(tmp_path: Path) -> None:
    below(tmp_path, {"tool.sh": "#!/bin/sh"})
    (tmp_path / "tool.sh").chmod(0o755)
    with bundle.zipped({"/usr/local/tool.sh": str(tmp_path / "tool.sh")}) as archive:
        names = zipfile.ZipFile(archive.body.file).infolist()
        assert [(entry.filename, oct(entry.external_attr >> 16)) for entry in names] == [
            ("usr/local/tool.sh", "0o100755")
        ]


@pytest.mark.parametrize(
    ("rules", "ignored", "kept"),
    [
        (["*.log"], ["a.log"], ["sub/a.log", "a.logs"]),
        (["**/*.log"], ["a.log", "sub/deep/a.log"], ["a.txt"]),
        (["build"], ["build", "build/x/y"], ["sub/build", "builds"]),
        (["**/build/"], ["build/x", "sub/build/y"], ["rebuild/x"]),
        (["data/**"], ["data/x", "data/a/b"], ["database"]),
        (["?.py", "[ab].txt", "[!c].md"], ["x.py", "a.txt", "b.md"], ["xy.py", "c.txt", "c.md"]),
        (["*.md", "!README.md"], ["x.md"], ["README.md"]),
        (["# comment", "", "  x  "], ["x"], ["# comment"]),
        (["a+b (1).txt"], ["a+b (1).txt"], ["aab 1.txt"]),
    ],
)
def test_patterns_mean_what_they_mean_in_dockerignore(rules: list[str], ignored: list[str], kept: list[str]) -> None:
    matches = patterns.matcher(rules)
    assert [path for path in ignored if not matches(path)] == []
    assert [path for path in kept if matches(path)] == []
