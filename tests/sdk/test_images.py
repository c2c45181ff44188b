"""Images: the chain, its checks, and `imports()`."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import squall
from squall import App, Image, Secret, exception
from squall.image_steps import Finders
from squall.spec import SecretRef, VolumeMount, official_python


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
        lambda image: Image.micromamba(),
        lambda image: image.micromamba_install("numpy"),
        lambda image: Image.from_aws_ecr("x"),
        lambda image: Image.from_gcp_artifact_registry("x"),
        lambda image: image.pip_install_private_repos("x"),
    ],
)
def test_what_is_not_built_says_what_to_use_instead(use: Any) -> None:
    with pytest.raises(exception.UnimplementedError) as caught:
        use(Image.debian_slim())
    assert "Use" in caught.value.hint or "from_registry" in caught.value.hint


@pytest.mark.parametrize(
    "use",
    [
        lambda image: image.apt_install("a", secrets=[1]),
        lambda image: image.uv_pip_install("a", uv_version="1"),
        lambda image: image.apt_install("a", volumes={"/v": 1}),
        lambda image: Image.from_dockerfile("x", registry_secret=1),
    ],
)
def test_arguments_that_are_not_built_are_refused(use: Any) -> None:
    with pytest.raises(exception.UnimplementedArgument):
        use(Image.debian_slim())


@pytest.mark.parametrize(
    "use",
    [
        lambda image: image.run_commands("a", secrets=["TOKEN"]),
        lambda image: image.pip_install("a", secrets={"TOKEN": "value"}),
        lambda image: Image.from_registry("x", secret="token"),  # type: ignore[arg-type]
    ],
)
def test_secrets_of_steps_are_secrets(use: Any) -> None:
    with pytest.raises(exception.InvalidError, match=r"must be a list of squall\.Secret"):
        use(Image.debian_slim())


def test_a_recipe_names_its_secrets_and_tells_the_builder_alone_where_they_are() -> None:
    named, local = Secret.from_name("index", environment_name="prod"), Secret.from_dict({"TOKEN": "canary"})
    image = (
        Image.from_registry("r.example/x", Secret.from_name("login"))
        .pip_install("a", secrets=[named])
        .run_commands("b", secrets=[local])
        .run_function(a_step, secrets=[local])
    )
    said = [arguments.get("secrets") for _, arguments in steps(image)]
    assert said == [["login"], ["index@prod"], ["Secret.from_dict([TOKEN])"], ["Secret.from_dict([TOKEN])"]]
    assert not any(name == "_secrets" for _, arguments in steps(image) for name in arguments)
    assert "canary" not in str(image.spec())
    told = image.spec(
        Finders(
            lambda secret: SecretRef(secret.name or "", "main", "" if secret.name else "st-1"),
            lambda path, _: VolumeMount(path, "vo-1"),
        )
    )
    assert told.id == image.spec().id
    assert [step.arguments["_secrets"][0]["id"] for step in told.steps] == ["", "", "st-1", "st-1"]
    other = Secret.from_dict({"TOKEN": "other"})
    one, two = (Image.debian_slim().run_commands("b", secrets=[each]) for each in (local, other))
    assert one.spec().id == two.spec().id, "a changed value builds nothing again"
    assert one.spec().id != Image.debian_slim().run_commands("b").spec().id


def test_a_recipe_names_its_volumes_and_tells_the_builder_alone_which_they_are() -> None:
    models = squall.Volume.from_name("models", create_if_missing=True)
    image = Image.debian_slim().run_function(a_step, volumes={"/models": models})
    other = Image.debian_slim().run_commands("b", volumes={"/models/": models.with_mount_options(sub_path="v2")})

    assert [arguments["volumes"] for _, arguments in steps(image)] == [{"/models": {"volume": "/models"}}]
    assert [arguments["volumes"] for _, arguments in steps(other)] == [
        {"/models": {"volume": "/models", "sub_path": "v2"}}
    ]
    assert "_volumes" not in steps(image)[0][1]
    told = image.spec(Finders(lambda secret: SecretRef(), lambda path, _: VolumeMount(path, "vo-1", "models")))
    assert told.id == image.spec().id
    assert told.steps[0].arguments["_volumes"][0]["volume"] == "vo-1"
    assert image.spec().id != Image.debian_slim().run_function(a_step).spec().id


def test_the_old_name_of_volumes_counts_in_build_steps() -> None:
    models = squall.Volume.from_name("models")
    with pytest.warns(DeprecationWarning, match="`network_file_systems=`"):
        image = Image.debian_slim().run_function(a_step, network_file_systems={"/m": models})
    assert image.spec().id == Image.debian_slim().run_function(a_step, volumes={"/m": models}).spec().id


@pytest.mark.parametrize(
    ("volumes", "why"),
    [
        ({"/root": "models"}, "must map folders to volumes"),
        ({"models": squall.Volume.from_name("models")}, "absolute paths"),
        ({"/a": squall.Volume.from_name("m"), "/a/b": squall.Volume.from_name("n")}, "in one another"),
        ({"/a": squall.Volume.from_name("m"), "/b": squall.Volume.from_name("m")}, "at one place only"),
        ({"/a": squall.CloudBucketMount("bucket")}, "cannot mount a bucket"),
    ],
)
def test_volumes_that_a_build_step_cannot_have(volumes: dict[str, Any], why: str) -> None:
    with pytest.raises((exception.InvalidError, exception.UnimplementedError), match=why):
        Image.debian_slim().run_function(a_step, volumes=volumes)


def test_a_step_that_commits_its_volume_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [{"id": "vo-1", "name": "models", "environment": "main", "version": 4}]
    monkeypatch.setenv("SQUALL_BUILD_VOLUMES", json.dumps(told))
    models = squall.Volume.from_name("models")

    assert models.commit() == 4
    assert squall.Volume.from_id("vo-1").commit() == 4
    models.reload()


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


POETRY_PROJECT = """
[tool.poetry.dependencies]
python = "^3.9"
alpha = "^1.0"
extra = { version = "*", optional = true }
[tool.poetry.group.dev.dependencies]
linter = "*"
[tool.poetry.group.docs]
optional = true
[tool.poetry.group.docs.dependencies]
builder = "^0.2.3"
"""
POETRY_LOCK = """
[[package]]
name = "alpha"
version = "1.0"
[package.dependencies]
beta = ">=2"
colour = { version = "*", markers = "sys_platform == \\"win32\\"" }
[[package]]
name = "beta"
version = "2.1"
[[package]]
name = "colour"
version = "0.4"
[[package]]
name = "linter"
version = "3.0"
[[package]]
name = "builder"
version = "0.2.5"
"""


def test_a_poetry_lock_file_is_installed_by_groups_and_markers(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(POETRY_PROJECT)
    (tmp_path / "poetry.lock").write_text(POETRY_LOCK)

    def lines(**options: Any) -> list[str]:
        ((_, arguments),) = steps(Image.debian_slim().poetry_install_from_file(project, **options))
        return str(arguments["requirements"]).splitlines()

    main = ["alpha==1.0", "beta==2.1", 'colour==0.4 ; (sys_platform == "win32")']
    assert lines(without=["dev"]) == main
    assert lines() == [*main, "linter==3.0"]
    assert lines(only=["docs"]) == ["builder==0.2.5"]
    assert lines(ignore_lockfile=True, only=["docs"]) == ["builder>=0.2.3,<0.3"]
    with pytest.raises(exception.InvalidError, match="no group 'tests'"):
        lines(with_=["tests"])


# --- steps that need a root file system ------------------------------------------------------------------------------

GREETING = "hello"


def a_step(name: str = "") -> str:
    return _greeted(name)


def _greeted(name: str) -> str:
    return GREETING + name


def test_files_that_are_copied_last_are_attached_to_containers_of_functions(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    base = Image.debian_slim().pip_install("numpy")
    copied = base.add_local_file(tmp_path / "a", "/data/a", copy=True).env({"A": "1"})
    image = copied.add_local_file(tmp_path / "b", "/data/", copy=True).of_function()
    assert steps(image) == steps(base.env({"A": "1"}))
    assert [source.remote for source in image.local_sources] == ["/data/a", "/data/b"]
    assert not image.copied
    assert copied.spec().needs_isolation, "the image itself is what it was"


def test_copied_files_stay_a_layer_for_later_steps_and_where_a_sandbox_is_needed_anyway(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    built_on = Image.debian_slim().add_local_file(tmp_path / "a", "/data/a", copy=True).pip_install("numpy")
    boxed = Image.debian_slim().run_commands("make").add_local_file(tmp_path / "a", "/data/a", copy=True)
    assert built_on.of_function().spec() == built_on.spec()
    assert boxed.of_function().spec() == boxed.spec()


def test_many_bytes_stay_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(os.urandom(2000))
    image = Image.debian_slim().add_local_file(tmp_path / "a", "/data/a", copy=True)
    assert image.of_function().local_sources
    monkeypatch.setattr(squall.image, "ATTACHED_BYTES", 1000)
    assert not image.of_function().local_sources


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("python:3.12", "3.12"),
        ("python:3.11.9-slim-bookworm", "3.11"),
        ("docker.io/library/python:3.10-slim", "3.10"),
        ("python:3.12-alpine", ""),
        ("python:latest", ""),
        ("registry.example/python:3.12", ""),
        ("debian:12", ""),
    ],
)
def test_this_machine_has_what_official_images_of_python_on_debian_have(tag: str, version: str) -> None:
    spec = Image.from_registry(tag).spec()
    assert official_python(spec.steps[0]) == version
    assert spec.needs_root
    assert spec.needs_isolation is (version == "")
    assert Image.from_registry(tag, add_python="3.12").spec().needs_isolation


def test_a_base_of_a_registry_and_its_python() -> None:
    image = Image.from_registry("debian:12", add_python="3.12")
    assert steps(image) == [("from_registry", {"tag": "debian:12"}), ("add_python", {"version": "3.12"})]
    assert image.spec().python_version == "3.12"
    assert Image.from_registry("python:3.12").spec().python_version == ""
    assert image.spec().needs_root
    system = Image.debian_slim().apt_install("git").entrypoint([]).shell(["/bin/bash", "-c"])
    assert system.spec().needs_root
    assert not system.spec().needs_isolation
    assert system.run_commands("true").spec().needs_isolation
    assert not Image.debian_slim().entrypoint([]).spec().needs_root
    assert Image.debian_slim().entrypoint(["/start"]).spec().needs_root
    assert not Image.debian_slim().pip_install("numpy").env({"A": "1"}).spec().needs_root
    for wrong in ("", "two words"):
        with pytest.raises(exception.InvalidError):
            Image.from_registry(wrong)


def test_commands_and_packages_of_the_system() -> None:
    image = Image.debian_slim().apt_install("git", ["curl"], env={"A": "1"}).run_commands("ls", ["pwd", "id"])
    assert steps(image) == [
        ("apt_install", {"packages": ["curl", "git"], "env": {"A": "1"}}),
        ("run_commands", {"commands": ["ls", "pwd", "id"]}),
    ]
    with pytest.raises(exception.InvalidError, match="not a command"):
        Image.debian_slim().run_commands("  ")
    with pytest.raises(exception.InvalidError, match="option"):
        Image.debian_slim().apt_install("-y")


def test_how_containers_start_is_configuration() -> None:
    image = Image.debian_slim().entrypoint(["/init"]).cmd([]).shell(["/bin/bash", "-c"])
    assert steps(image) == [
        ("entrypoint", {"command": ["/init"]}),
        ("cmd", {"command": []}),
        ("shell", {"command": ["/bin/bash", "-c"]}),
    ]
    for wrong in (lambda: image.entrypoint("/init"), lambda: image.shell([])):  # type: ignore[arg-type]
        with pytest.raises(exception.InvalidError):
            wrong()


def test_copied_files_are_a_step_that_their_contents_identify(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("one")

    def copied() -> Image:
        return Image.debian_slim().add_local_file(file, "/data/", copy=True).env({"A": "1"})

    image = copied()
    ((kind, arguments), _) = steps(image)
    with image.copied[0].zipped() as archive:
        assert (kind, arguments) == ("add_local", {"files": {"sha256": archive.sha256, "bytes": archive.body.size}})
    assert copied().spec() == image.spec()
    file.write_text("two")
    assert copied().spec().id != image.spec().id
    with pytest.raises(exception.InvalidError, match="does not exist"):
        Image.debian_slim().add_local_dir(tmp_path / "missing", "/d", copy=True).spec()


def test_a_function_step_depends_on_what_the_function_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Image.debian_slim().run_function(a_step, args=("x",)).spec()
    assert first.steps[0].arguments["function"] == "a_step"
    assert Image.debian_slim().run_function(a_step, args=("x",)).spec().id == first.id
    assert Image.debian_slim().run_function(a_step, args=("y",)).spec().id != first.id
    monkeypatch.setitem(globals(), "GREETING", "good morning")
    assert Image.debian_slim().run_function(a_step, args=("x",)).spec().id != first.id


def test_where_the_code_of_a_function_step_lies_is_no_part_of_the_image() -> None:
    spec = Image.debian_slim().run_function(a_step).spec()
    elsewhere = replace(spec.steps[0], arguments={**spec.steps[0].arguments, "_code": {"sha256": "0", "bytes": 1}})
    assert replace(spec, steps=(elsewhere,)).id == spec.id


@pytest.mark.parametrize("function", [lambda: None, Path.exists, print])
def test_only_functions_at_the_top_of_a_file_can_be_a_step(function: Any) -> None:
    with pytest.raises(exception.InvalidError, match="top level"):
        Image.debian_slim().run_function(function)


def test_a_forced_build_is_another_image_and_the_same_within_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, forced = Image.debian_slim().pip_install("x"), Image.debian_slim().pip_install("x", force_build=True)
    assert plain.spec().id != forced.spec().id == Image.debian_slim().pip_install("x", force_build=True).spec().id
    assert Image.debian_slim(force_build=True).spec().id != Image.debian_slim().spec().id
    monkeypatch.setenv("SQUALL_FORCE_BUILD", "1")
    assert Image.debian_slim().run_commands("x").spec().steps[0].arguments["forced"]


def test_a_dockerfile_sends_the_files_that_it_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("app.py", "secret.txt", "src/a.py", "src/b.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".dockerignore").write_text("*.tmp\n**/*.tmp\n")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text('FROM x AS y\nCOPY --chown=1 app.py /a/\nCOPY ["src", "/src"]\nCOPY --from=y /etc /e\n')
    monkeypatch.chdir(tmp_path)
    image = Image.from_dockerfile("Dockerfile", build_args={"V": "1"})
    ((kind, arguments),) = steps(image)
    assert (kind, arguments["text"], arguments["build_args"]) == ("from_dockerfile", dockerfile.read_text(), {"V": "1"})
    with image.copied[0].zipped() as archive, zipfile.ZipFile(archive.body.file) as names:
        assert names.namelist() == ["app.py", "src/a.py"]
    (tmp_path / "secret.txt").write_text("changed")
    assert Image.from_dockerfile("Dockerfile", build_args={"V": "1"}).spec().id == image.spec().id
    dockerfile.write_text("FROM x\nONBUILD RUN ls\n")
    with pytest.raises(exception.InvalidError, match="ONBUILD"):
        Image.from_dockerfile("Dockerfile").spec()
    with pytest.raises(exception.InvalidError, match="cannot be read"):
        Image.from_dockerfile("missing").spec()


def test_lines_of_a_dockerfile_go_on_from_an_image(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    image = Image.from_registry("x", setup_dockerfile_commands=["USER root"]).dockerfile_commands(
        ["COPY f /f"], context_files={"f": tmp_path / "f"}
    )
    assert [kind for kind, _ in steps(image)] == ["from_registry", "dockerfile_commands", "dockerfile_commands"]
    assert steps(image)[2][1]["text"] == "COPY f /f\n"
    assert set(steps(image)[2][1]["context"]) == {"sha256", "bytes"}


def test_names_of_published_images() -> None:
    for wrong in ("", "two words", "a:b:c", "../x"):
        with pytest.raises(exception.InvalidError):
            Image.from_name(wrong)
    with pytest.raises(exception.InvalidError, match="not the id"):
        Image.from_id("x").spec()
    with pytest.raises(exception.ExecutionError, match="running"):
        Image.debian_slim().build(App("x"))
