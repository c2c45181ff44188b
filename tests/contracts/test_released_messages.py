"""Rolling upgrades: services of the last release and of this one share a bus, so each reads what the other writes.

`released/<version>/` holds the golden messages as they were at that release. They are never edited: a folder goes when
upgrades from its release are no longer promised. At a release, `python -m tests.contracts.test_released_messages 0.2.0`
freezes those of today under that name.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tests.contracts.test_golden_messages import GOLDEN, from_json, kept

from squall_contracts.envelope import BadMessage, Message, NewerMessage

RELEASED = Path(__file__).parent / "released"
CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
FROZEN = sorted(RELEASED.glob("*/*.json"))


def named(file: Path) -> str:
    return f"{file.parent.name} {file.stem}"


def classes() -> dict[tuple[str, int], type[Message]]:
    """Every message that services of today know, by type and version."""
    pending, found = [Message], {}
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if cls.TYPE:
            found[cls.TYPE, cls.VERSION] = cls
    return found


def body_of(file: Path) -> dict[str, Any]:
    body: dict[str, Any] = from_json(json.loads(file.read_text()))
    return body


def class_of(file: Path) -> type[Message]:
    body = body_of(file)
    found = classes().get((body["t"], body["v"]))
    assert found, (
        f"release {file.parent.name} writes and reads {body['t']} version {body['v']}, and today no class does: "
        "a newer version comes beside the older one, until nobody upgrades from that release"
    )
    return found


@pytest.mark.parametrize("file", FROZEN, ids=named)
def test_what_the_last_release_wrote_is_understood(file: Path) -> None:
    body = body_of(file)

    message = class_of(file).decode(msgpack.packb(body))

    assert kept(msgpack.unpackb(message.encode()), body) == body, "a field has another meaning now"


@pytest.mark.parametrize("file", FROZEN, ids=named)
def test_what_is_written_today_is_understood_by_the_last_release(file: Path) -> None:
    """It has every field that its reader may need, of the same type; what came later that reader ignores."""
    body, cls = body_of(file), class_of(file)

    written = msgpack.unpackb(cls.decode(msgpack.packb(body)).encode())

    assert set(body) <= set(written)
    for name, value in body.items():
        assert type(written[name]) is type(value), f"{name} was {type(value).__name__}"


@pytest.mark.parametrize("file", FROZEN, ids=named)
def test_a_newer_version_is_refused_with_what_to_do(file: Path) -> None:
    body, cls = body_of(file), class_of(file)

    with pytest.raises(NewerMessage, match=f"version {cls.VERSION + 1} is newer than {cls.VERSION}") as refused:
        cls.decode(msgpack.packb({**body, "v": cls.VERSION + 1}))

    assert isinstance(refused.value, BadMessage)
    assert "upgrade it" in refused.value.hint


def test_golden_messages_are_still_what_was_released() -> None:
    edited = [named(file) for file in FROZEN if (GOLDEN / file.name).read_bytes() != file.read_bytes()]

    assert edited == []


def test_each_release_in_the_changelog_is_frozen() -> None:
    """All but those from which nobody upgrades to this one: older than the oldest folder."""
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", CHANGELOG.read_text(), re.MULTILINE)
    frozen = {folder.name for folder in RELEASED.iterdir()}
    oldest = min(map(parts, frozen))

    assert [version for version in released if parts(version) >= oldest and version not in frozen] == []


def parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


if __name__ == "__main__":
    shutil.copytree(GOLDEN, RELEASED / sys.argv[1])
