"""Images: the chain, its checks, and `imports()`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from squall import Image, exception


def steps(image: Image) -> list[tuple[str, dict[str, Any]]]:
    """What the builder gets."""
    return [(step.kind, dict(step.arguments)) for step in image.spec().steps]


def test_the_python_of_an_image_is_the_local_one_unless_said() -> None:
    assert Image.debian_slim().spec().python_version == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert Image.debian_slim("3.12").spec().python_version == "3.12"
    with pytest.raises(TypeError):
        Image.debian_slim(3.12)  # type: ignore[arg-type]
    with pytest.raises(exception.InvalidError):
        Image.debian_slim("three")
    with pytest.raises(exception.InvalidError):
        Image()


def test_packages_are_sorted_so_that_their_order_rebuilds_nothing() -> None:
    one = Image.debian_slim().pip_install("numpy", ["pandas", "attrs"])
    other = Image.debian_slim().uv_pip_install(["attrs", "numpy"], "pandas")
    assert steps(one) == [("pip_install", {"packages": ["attrs", "numpy", "pandas"]})]
    assert one.spec().id == other.spec().id


def test_options_of_pip_are_kept() -> None:
    image = Image.debian_slim().pip_install(
        "a", index_url="https://i", extra_index_url="https://e", find_links="f", pre=True, extra_options="--no-deps"
    )
    assert steps(image)[0][1] == {
        "packages": ["a"],
        "index_url": "https://i",
        "extra_index_url": "https://e",
        "find_links": "f",
        "pre": True,
        "extra_options": "--no-deps",
    }


def test_an_option_among_the_packages_is_refused() -> None:
    with pytest.raises(exception.InvalidError, match="--pre"):
        Image.debian_slim().pip_install("numpy", "--pre")


def test_no_packages_are_no_step() -> None:
    image = Image.debian_slim()
    assert image.pip_install([]) is image


def test_images_are_immutable() -> None:
    base = Image.debian_slim().pip_install("numpy")
    base.env({"A": "1"})
    assert len(steps(base)) == 1


def test_env_maps_text_to_text_and_leaves_the_platforms_names_alone() -> None:
    assert steps(Image.debian_slim().env({"A": "1"})) == [("env", {"variables": {"A": "1"}})]
    for wrong in ({"A": 1}, {"SQUALL_TOKEN": "x"}):
        with pytest.raises(exception.InvalidError):
            Image.debian_slim().env(wrong)  # type: ignore[arg-type]


def test_build_steps_after_local_files_are_refused(tmp_path: Path) -> None:
    image = Image.debian_slim().add_local_dir(tmp_path, "/data")
    with pytest.raises(exception.InvalidError, match="add_local"):
        image.pip_install("numpy")
    with pytest.raises(exception.InvalidError, match="add_local"):
        image.env({"A": "1"})
    image.add_local_file(tmp_path / "x", "/x").add_local_python_source("squall")


def test_local_files_are_no_part_of_the_image(tmp_path: Path) -> None:
    assert Image.debian_slim().add_local_dir(tmp_path, "/data").spec() == Image.debian_slim().spec()


def test_remote_paths_are_absolute_and_a_slash_keeps_the_files_name() -> None:
    with pytest.raises(exception.InvalidError, match="absolute"):
        Image.debian_slim().add_local_file("x", "data/x")
    with pytest.raises(exception.InvalidError, match=r"\.\."):
        Image.debian_slim().add_local_dir("x", "/data/../etc")
    image = Image.debian_slim().add_local_file("here/config.toml", "/etc/app/")
    assert image.local_sources[0].remote == "/etc/app/config.toml"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "use",
    [
        lambda image: image.apt_install("git"),
        lambda image: image.run_commands("ls"),
        lambda image: image.dockerfile_commands("RUN ls"),
        lambda image: Image.from_registry("python:3.12"),
        lambda image: Image.from_dockerfile("Dockerfile"),
        lambda image: Image.micromamba(),
        lambda image: image.run_function(print),
    ],
)
def test_other_builders_say_that_they_are_not_built(use: Any) -> None:
    with pytest.raises(exception.UnimplementedError):
        use(Image.debian_slim())


@pytest.mark.parametrize(
    "use",
    [
        lambda image: image.add_local_file("x", "/x", copy=True),
        lambda image: image.pip_install("a", force_build=True),
        lambda image: image.pip_install("a", secrets=[1]),
        lambda image: image.uv_pip_install("a", uv_version="1"),
        lambda image: Image.debian_slim(force_build=True),
    ],
)
def test_arguments_that_are_not_built_are_refused(use: Any) -> None:
    with pytest.raises(exception.UnimplementedArgument):
        use(Image.debian_slim())


def test_imports_may_fail_here_but_not_in_containers_of_that_image(monkeypatch: pytest.MonkeyPatch) -> None:
    image, other = Image.debian_slim("3.12").pip_install("x"), Image.debian_slim("3.12")
    with image.imports():
        import a_module_that_is_not_here

    monkeypatch.setenv("SQUALL_CONTAINER", "1")
    monkeypatch.setenv("SQUALL_IMAGE_ID", image.spec().id)
    with other.imports():
        import a_module_that_is_not_here
    with pytest.raises(ImportError), image.imports():
        import a_module_that_is_not_here  # noqa: F401


def test_other_errors_are_never_swallowed_by_imports() -> None:
    with pytest.raises(ZeroDivisionError), Image.debian_slim().imports():
        _ = 1 / 0


def test_pipe_passes_the_image_on() -> None:
    def with_numpy(image: Image, version: str) -> Image:
        return image.pip_install(f"numpy=={version}")

    assert steps(Image.debian_slim().pipe(with_numpy, "2.0")) == [("pip_install", {"packages": ["numpy==2.0"]})]


# --- requirements from files -----------------------------------------------------------------------------------------


def test_a_requirements_file_is_read_with_the_files_it_names(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("beta==1  # pinned\n")
    listed = tmp_path / "requirements.txt"
    listed.write_text("# comment\n-r base.txt\nalpha>=1 \\\n  ; python_version > '3'\n\n--index-url https://i\n")
    image = Image.debian_slim().pip_install_from_requirements(listed, find_links="/wheels")
    (step,) = steps(image)
    assert step[1]["find_links"] == "/wheels"
    assert [" ".join(line.split()) for line in step[1]["requirements"].splitlines()] == [
        "beta==1",
        "alpha>=1 ; python_version > '3'",
        "--index-url https://i",
    ]
    assert steps(Image.debian_slim().uv_pip_install("gamma", requirements=[str(listed)]))[0][1] == {
        "packages": ["gamma"]
    }


def test_a_file_is_read_when_the_image_is_needed_not_before(tmp_path: Path) -> None:
    image = Image.debian_slim().pip_install_from_requirements(tmp_path / "missing.txt")
    with pytest.raises(exception.InvalidError, match=r"missing\.txt"):
        image.spec()


@pytest.mark.parametrize("line", ["-e .", "./own", "--constraint c.txt", "/abs/pkg"])
def test_what_only_this_machine_has_is_refused(tmp_path: Path, line: str) -> None:
    listed = tmp_path / "requirements.txt"
    listed.write_text(line + "\n")
    with pytest.raises(exception.InvalidError, match="of this machine"):
        Image.debian_slim().pip_install_from_requirements(listed).spec()


def test_the_dependencies_of_a_project(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["b", "a>1"]\n[project.optional-dependencies]\ngpu = ["torch"]\n')
    assert steps(Image.debian_slim().pip_install_from_pyproject(project, ["gpu"])) == [
        ("pip_install", {"packages": ["a>1", "b", "torch"]})
    ]
    with pytest.raises(exception.InvalidError, match="no optional dependencies 'docs'"):
        Image.debian_slim().pip_install_from_pyproject(project, ["docs"]).spec()


LOCK = """
version = 1
requires-python = ">=3.9"

[[package]]
name = "alpha"
version = "1.0"
source = { registry = "https://index.example/simple" }
sdist = { url = "https://files.example/alpha-1.0.tar.gz", hash = "sha256:DIGEST", size = 1 }

[[package]]
name = "mine"
version = "0.1"
source = { virtual = "." }
dependencies = [{ name = "alpha" }]

[package.metadata]
requires-dist = [{ name = "alpha", specifier = "==1.0" }]
"""


def test_a_uv_lock_file_is_installed_as_it_is_without_the_project_itself(tmp_path: Path) -> None:
    project = '[project]\nname = "mine"\nversion = "0.1"\nrequires-python = ">=3.9"\ndependencies = ["alpha==1.0"]\n'
    (tmp_path / "pyproject.toml").write_text(project)
    with pytest.raises(exception.InvalidError, match=r"uv\.lock is not there"):
        Image.debian_slim().uv_sync(tmp_path).spec()
    (tmp_path / "uv.lock").write_text(LOCK.replace("DIGEST", "0" * 64))
    assert steps(Image.debian_slim().uv_sync(tmp_path)) == [("pip_install", {"requirements": "alpha==1.0\n"})]


def test_workdir_is_a_step_and_must_be_a_path_of_a_container() -> None:
    assert steps(Image.debian_slim().workdir("/root/data")) == [("workdir", {"path": "/root/data"})]
    for wrong in ("", "../up"):
        with pytest.raises(exception.InvalidError):
            Image.debian_slim().workdir(wrong)
