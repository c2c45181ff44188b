"""Secrets on whole platforms: they reach the containers that declare them, change with the next one, and are nowhere
else. Canaries are looked for in everything that a platform keeps and in everything that it tells."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flows.conftest import FORMS, PROGRAMS, nothing_was_forbidden
from tests.support.platform import Platform

import squall
from squall import exception
from squall_bus import connect
from squall_contracts import topology
from squall_embedded.settings import REGION, SHARDS

pytestmark = pytest.mark.slow

CANARIES = {f"CANARY_OF_{name}": f"canary-{name.lower()}-5b1f0e" for name in ("APP", "DICT", "NAME")}


def hashed(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """Each service a process with a key and rights of its own, and the program deployed."""
    with FORMS["processes"]() as started, pytest.MonkeyPatch.context() as patch:
        for name, value in CANARIES.items():
            patch.setenv(name, value)
        started.squall("secret", "create", "canaries", f"CANARY_OF_NAME={CANARIES['CANARY_OF_NAME']}")
        started.squall("deploy", PROGRAMS / "secretive.py")
        yield started
        nothing_was_forbidden(started)


def test_values_reach_the_container_before_its_code_is_imported(client: Platform) -> None:
    told = squall.Function.from_name("secretive", "told").remote()

    assert told == {
        **{name: hashed(value) for name, value in CANARIES.items()},
        "at import": hashed(CANARIES["CANARY_OF_NAME"]),
    }


def test_the_next_container_sees_a_changed_value(client: Platform) -> None:
    once, present = squall.Function.from_name("secretive", "once"), CANARIES["CANARY_OF_NAME"]
    for value in ("canary-second-5b1f0e", "canary-third-5b1f0e", CANARIES["CANARY_OF_NAME"]):
        client.squall("secret", "update", "canaries", f"CANARY_OF_NAME={value}")
        # The container for the next input may have been started already, while it was wanted.
        seen = [once.remote() for _ in range(4)]
        assert seen[2:] == [hashed(value)] * 2
        assert set(seen) <= {hashed(present), hashed(value)}
        present = value


def test_other_options_bring_other_secrets(client: Platform) -> None:
    with_other = squall.Function.from_name("secretive", "once").with_options(
        secrets=[squall.Secret.from_dict({"CANARY_OF_NAME": "canary-option-5b1f0e"})]
    )
    assert with_other.remote() == hashed("canary-option-5b1f0e")


def test_a_deleted_secret_keeps_containers_from_starting_and_says_so(client: Platform) -> None:
    client.squall("secret", "create", "short-lived", "CANARY_OF_NAME=canary-short-5b1f0e")
    lived = squall.Function.from_name("secretive", "once").with_options(
        secrets=[squall.Secret.from_name("short-lived", required_keys=["CANARY_OF_NAME"])]
    )
    assert lived.remote() == hashed("canary-short-5b1f0e")
    squall.Secret.objects.delete("short-lived")

    # Containers that were made before, of which two may be ready, have it still.
    call = next(call for call in (lived.spawn() for _ in range(3)) if not has_ended_within(call, 3))
    waiting = client.squall("app", "list", "--json").stdout + json.dumps(status(client))
    assert "short-lived" in waiting

    squall.Secret.objects.create("short-lived", {"CANARY_OF_NAME": "canary-again-5b1f0e"})
    assert call.get(timeout=60) == hashed("canary-again-5b1f0e")


def has_ended_within(call: squall.FunctionCall, seconds: float) -> bool:
    try:
        call.get(timeout=seconds)
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("create", "x"), "needs values"),
        (("create", "x", "canary-typed-5b1f0e"), "KEY=VALUE"),
        (("create", "x", "1KEY=canary-typed-5b1f0e"), "not valid"),
        (("create", "a/b", "KEY=1"), "not valid"),
        (("create", "canaries", "KEY=canary-typed-5b1f0e"), "is there"),
        (("create", "x", "--from-json", "/dev/null"), "not JSON"),
        (("create", "x", "--from-dotenv", "/absent/.env"), "No such file"),
        (("update", "canaries"), "nothing to change"),
        (("update", "absent", "KEY=1"), "no secret 'absent'"),
        (("delete", "absent"), "no secret 'absent'"),
    ],
)
def test_bad_input_is_refused_with_a_fix_and_without_the_value(
    client: Platform, words: tuple[str, ...], told: str
) -> None:
    refused = client.squall("secret", *words, check=False)

    assert refused.returncode != 0
    assert told in refused.stderr
    assert "Fix: " in refused.stderr
    assert "5b1f0e" not in refused.stdout + refused.stderr


def status(platform: Platform) -> dict[str, object]:
    from squall import session

    here = session.current()
    found: dict[str, object] = here.client.json("GET", "/v1/apps/secretive/status")
    return found


def test_an_app_whose_secret_is_missing_is_not_deployed(client: Platform, tmp_path: Path) -> None:
    program = tmp_path / "lacking.py"
    program.write_text((PROGRAMS / "secretive.py").read_text().replace('"canaries"', '"absent"'))

    refused = client.squall("deploy", program, check=False)

    assert refused.returncode == 1
    assert "Error [not_found]: " in refused.stderr
    assert "squall secret create absent" in refused.stderr


def test_values_are_nowhere_but_in_containers(client: Platform) -> None:
    squall.Function.from_name("secretive", "told").remote()
    with pytest.raises(ValueError, match="in reach"):
        squall.Function.from_name("secretive", "fails").remote()
    call = squall.Function.from_name("secretive", "once").spawn()
    call.get(timeout=60)

    words = (
        ("secret", "list", "--json"),
        ("function", "info", "secretive", "told", "--json"),
        ("app", "list", "--json"),
        ("app", "history", "secretive", "--json"),
        ("call", "get", call.object_id, "--json"),
        ("trace", call.object_id),
        ("logs", "secretive", "--all"),
        ("container", "list", "--json"),
        ("doctor",),
    )
    said = {" ".join(each): client.squall(*each, check=False) for each in words}
    assert [name for name, ended in said.items() if shown(f"{ended.stdout}{ended.stderr}".encode())] == []
    assert "CANARY_OF_NAME" in said["secret list --json"].stdout

    assert asyncio.run(streams_that_show(client)) == []
    assert [str(file) for file in files(client.folder) if shown(file.read_bytes())] == []
    key = client.data / "secrets-key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_text().encode() not in b"".join(file.read_bytes() for file in files(client.data / "bus"))


def shown(data: bytes) -> bool:
    """Whether a canary is in it, as it is or in base64 at any offset."""
    return b"-5b1f0e" in data or any(
        base64.b64encode(b"x" * shift + b"-5b1f0e")[2 if shift else 0 : -4] in data for shift in (1, 2)
    )


def files(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):  # what is being removed
        return [file for file in folder.rglob("*") if file.is_file()]
    return []


async def streams_that_show(platform: Platform) -> list[str]:
    """Also those that lie in the server's memory."""
    layout = topology.build(REGION, SHARDS)
    found: list[str] = []
    async with connect(platform.bus_settings(), layout) as bus:
        for name in [spec.name for spec in layout.streams] + [f"KV_{spec.name}" for spec in layout.buckets]:
            found += [
                f"{name} {stored.subject}"
                async for stored in bus.read(name, ">")
                if shown(stored.data + repr(dict(stored.headers)).encode())
            ]
    return found


def test_a_missing_name_is_told_by_the_handle(client: Platform) -> None:
    with pytest.raises(exception.NotFoundError, match="nowhere"):
        squall.Secret.from_name("nowhere").hydrate()
    with pytest.raises(exception.InvalidError, match="has no OTHER"):
        squall.Secret.from_name("canaries", required_keys=["OTHER"]).hydrate()
    assert "canaries" in [secret.name for secret in squall.Secret.objects.list()]
