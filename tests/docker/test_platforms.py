"""A whole platform on each backend that isolates, started once: what users do on it is the same on all of them."""

from __future__ import annotations

import io
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docker.sandboxes import ISOLATING, shared_base_root
from tests.support.platform import Platform, eventually

import squall
from squall import errors
from squall_images import bases
from squall_images.chain import Configuration
from squall_images.layered import LayerFolder

pytestmark = [pytest.mark.slow, pytest.mark.root]

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = Path(__file__).parent / "programs" / "boxed.py"
NOT_FORKED = {
    "gvisor": "its memory snapshot is not made yet",
    "docker": "containers of an engine cannot be forked",
}


@pytest.fixture(scope="module", params=ISOLATING)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def platform(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """With a base for debian_slim, and `boxed` deployed."""
    engine = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    made = Platform(
        arguments=("--backend", backend),
        environment={"SQUALL_GPU_AGENT_DOCKER_SOCKET": engine} if backend == "docker" else {},
    )
    folder = LayerFolder(made.data / "images")
    folder.open()
    bases.register(folder, f"debian_slim:{OWN}", shared_base_root(tmp_path_factory), Configuration())
    with made as started:
        started.squall("deploy", PROGRAM)
        yield started


@pytest.fixture
def client(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    for name in ("SQUALL_SERVER_URL", "SQUALL_TOKEN", "SQUALL_HOME"):
        monkeypatch.setenv(name, platform.client_environment()[name])
    return platform


def function(name: str) -> squall.Function:
    return squall.Function.from_name("boxed", name)


def made(name: str) -> Any:
    return squall.Cls.from_name("boxed", name)()


def told(platform: Platform, *words: str) -> Any:
    return json.loads(platform.squall(*words, "--json").stdout)


def test_what_users_do(client: Platform, backend: str) -> None:
    assert backend in told(client, "node", "list")[0]["backends"]
    assert function("double").remote(21) == 42
    assert list(function("double").map(range(30))) == [2 * x for x in range(30)]
    assert list(function("spell").remote_gen("items")) == list("items")
    assert function("networks").remote() == ["lo"]

    shared = squall.Dict.from_name("boxed", create_if_missing=True)
    shared["from the test"] = "a word"
    assert function("speak").remote(shared) == ("a word", 8)
    assert shared["from the container"] == {"secret": "of the test"}
    eventually(lambda: "said in" in client.squall("logs", "boxed").stdout, within_s=60)
    page = urllib.request.Request(f"{function('page').get_web_url()}/path", data=b"you ")
    with urllib.request.urlopen(page, timeout=60) as answer:
        assert answer.read() == b"hello you /path"

    counter = made("Counter")
    (first, container), (second, _) = counter.more.remote(), counter.more.remote()
    assert (first, second) == (101, 102)
    code = "import os; print(os.environ['SQUALL_CONTAINER_ID'], os.path.exists('/root/boxed.py'))"
    assert client.squall("container", "exec", container, "python3", "-c", code).stdout == f"{container} True\n"


def test_what_goes_wrong_is_told(client: Platform) -> None:
    with pytest.raises(LookupError, match="nothing there") as failure:
        function("fails").remote()
    assert 'boxed.py", line' in str(failure.value.__cause__)
    assert "in deep" in str(failure.value.__cause__)
    with pytest.raises(errors.FunctionTimeoutError, match="timeout of 2 s"):
        function("too_slow").remote()
    hoard = function("hoard").spawn()
    limit = "killed: out of memory (limit 128 MiB)"
    eventually(lambda: limit in client.squall("call", "get", hoard.object_id).stdout, within_s=60)
    hoard.cancel()


def test_a_snapshot_is_taken_or_it_is_told_why_not(client: Platform, backend: str) -> None:
    call = made("Loaded").see.spawn()
    assert call.get(timeout=60) == (backend in NOT_FORKED), "loaded in the container itself"
    how = f"fresh: {NOT_FORKED[backend]}" if backend in NOT_FORKED else "fork"
    assert f"1 {how}" in client.squall("function", "info", "boxed", "Loaded").stdout
    eventually(lambda: NOT_FORKED.get(backend, "fork") in client.squall("trace", call.object_id).stdout, within_s=60)


def test_mounted_volumes(client: Platform, backend: str) -> None:
    volume = squall.Volume.from_name("boxed", create_if_missing=True)
    with volume.batch_upload() as batch:
        for name in ("old.txt", "kept.txt"):
            batch.put_file(io.BytesIO(b"from the client"), name)
    first = volume.current_version()
    reader = made("Reader")
    assert set(reader.see.remote(False)) == {"old.txt", "kept.txt"}

    assert [function("write").remote(text) for text in ("one", "two")] == [first + 1, first + 2]

    seen = [function("read").remote() for _ in range(2)]
    assert [each[:2] for each in seen] == [("two", ["kept.txt", "link", "sub"])] * 2
    assert (seen[0][2] == seen[1][2]) == (backend not in NOT_FORKED), "one import, by a template"
    assert b"".join(volume.read_file("link")) == b"two"
    assert set(reader.see.remote(False)) == {"old.txt", "kept.txt"}, "until it reloads"
    assert reader.see.remote(True) == {"kept.txt": "from the client", "link": "two", "sub/a.txt": "two"}
    reader.replace_folder.remote()
    assert {each.path for each in volume.iterdir("/", recursive=True) if each.type != "directory"} == {
        "moved.txt",
        "link",
        "sub/new.txt",
    }
    assert function("escape").remote() == ["Read-only file system"] * 2
    assert [made("Prepared").see.remote() for _ in range(2)] == ["prepared"] * 2
    function("leave").remote()
    eventually(lambda: "left.txt" in {each.path for each in volume.listdir("/")}, within_s=60)


def test_a_server_that_is_not_python(client: Platform) -> None:
    client.squall("deploy", EXAMPLES / "web_busybox.py")
    url = squall.Function.from_name("busybox", "pages").get_web_url()
    with urllib.request.urlopen(f"{url}/index.html", timeout=60) as answer:
        assert answer.read() == b"<h1>served by busybox</h1>\n"


PASSING = """
import squall

app = squall.App("passing", image=squall.Image.debian_slim().env({"OF_ONE_APP": "1"}))

@app.function()
def f():
    return 7
"""


@pytest.mark.parametrize("backend", ISOLATING[:1], indirect=True, scope="module")
def test_images_that_nothing_needs_are_pruned_and_others_stay(client: Platform, tmp_path: Path) -> None:
    (tmp_path / "passing.py").write_text(PASSING)
    before = {row["image"] for row in told(client, "image", "list")}
    client.squall("deploy", tmp_path / "passing.py")
    (image,) = {row["image"] for row in told(client, "image", "list")} - before

    def pruned(*words: str) -> str:
        return client.squall("image", "prune", "--older-than", "0s", *words).stdout

    assert image not in pruned("--dry-run"), "a function that is scaled to zero needs it"
    client.squall("app", "stop", "passing", "--yes")
    assert image in pruned("--dry-run")
    removed = pruned()
    assert image in removed
    assert "Removed 1 images." in removed
    assert {row["image"] for row in told(client, "image", "list")} == before
    assert function("double").remote(4) == 8
    client.squall("deploy", tmp_path / "passing.py")
    assert squall.Function.from_name("passing", "f").remote() == 7, "it is built again"
