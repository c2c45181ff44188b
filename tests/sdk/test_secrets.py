"""Secret in the SDK: where values come from, what is refused, and that nothing shows them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception, publish, session
from squall.declaration import Declaration

CANARY = "canary-value-2"


def plain() -> None:
    """Does nothing."""


def told(gateway: FakeGateway, here: session.Session, app: squall.App) -> list[dict[str, Any]]:
    publish.publish(app, here, "ephemeral", "x", "main")
    return list(gateway.apps[-1]["functions"][0]["secrets"])


def test_values_go_up_apart_from_the_spec_once_for_each_secret(
    gateway: FakeGateway, connected: session.Session
) -> None:
    shared = squall.Secret.from_dict({"A": CANARY, "B": None})
    app = squall.App(secrets=[shared])
    app.function(secrets=[squall.Secret.from_name("api", required_keys=["K"]), shared])(plain)

    refs = told(gateway, connected, app)

    assert [(ref["name"], ref["required"]) for ref in refs] == [("", []), ("api", ["K"]), ("", [])]
    assert refs[0]["id"] == refs[2]["id"] != ""
    assert gateway.kept_values == [{"A": CANARY}]
    assert CANARY not in json.dumps(gateway.apps)


def test_a_dotenv_file_is_read_when_the_app_is_published(
    gateway: FakeGateway, connected: session.Session, tmp_path: Path
) -> None:
    secret = squall.Secret.from_dotenv(tmp_path)
    (tmp_path / ".env").write_text('# why\nexport A="two words"\nB=3\nEMPTY=\n')
    app = squall.App()
    app.function(secrets=[secret])(plain)

    told(gateway, connected, app)

    assert gateway.kept_values == [{"A": "two words", "B": "3", "EMPTY": ""}]


def test_the_nearest_dotenv_file_above_is_taken_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "custom.env").write_text("A=1\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "app.py").touch()

    found = squall.Secret.from_dotenv(inner / "app.py", filename="custom.env")
    absent = squall.Secret.from_dotenv(inner, filename="absent.env")

    assert found._source() == {"A": "1"}  # type: ignore[operator]
    with pytest.raises(exception.InvalidError, match=r"no absent\.env"):
        absent._source()  # type: ignore[operator]


def test_local_variables_are_taken_here_and_a_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", CANARY)
    monkeypatch.delenv("NOWHERE", raising=False)

    assert squall.Secret.from_local_environ(["HERE"])._source() == {"HERE": CANARY}  # type: ignore[operator]
    with pytest.raises(exception.InvalidError, match="NOWHERE") as caught:
        squall.Secret.from_local_environ(["HERE", "NOWHERE"])
    assert CANARY not in str(caught.value)


def test_in_a_container_local_variables_are_neither_needed_nor_taken() -> None:
    program = """
import squall
assert squall.Secret.from_local_environ(["NOT_SET_ANYWHERE"])._source() == {}
squall.App("x", secrets=[squall.Secret.from_name("a"), squall.Secret.from_dotenv()])
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "SQUALL_CONTAINER": "1"}, check=True, timeout=30)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: squall.Secret.from_dict({"A": 1}), "'A' is a int"),  # type: ignore[dict-item]
        (lambda: squall.Secret.from_dict({1: "x"}), "text to text"),  # type: ignore[dict-item]
        (lambda: squall.Secret.from_dict({"SQUALL_TOKEN": CANARY}), "SQUALL_"),
        (lambda: squall.Secret.from_dict({"A=B": CANARY}), "A=B"),
        (lambda: squall.Secret.from_dict({"A": CANARY + "\0"}), "null character"),
        (lambda: squall.Secret.from_dict(["A"]), "takes a dict"),  # type: ignore[arg-type]
        (lambda: squall.Secret.from_local_environ("PATH"), "list of names"),
        (lambda: squall.Secret.from_name("bad name"), "not valid"),
        (lambda: squall.Secret.from_name(3), "must be text"),  # type: ignore[arg-type]
        (lambda: squall.Secret.from_name("a", required_keys="KEY"), "required_keys"),
        (lambda: squall.App(secrets={"A": CANARY}), "list of squall.Secret"),  # type: ignore[arg-type]
        (lambda: squall.App().function(secrets=squall.Secret.from_name("a"))(plain), "list of squall.Secret"),  # type: ignore[arg-type]
        (lambda: squall.App().function(secrets=[{"A": CANARY}])(plain), "a list of dict"),  # type: ignore[list-item]
        (lambda: pickle.dumps(squall.Secret.from_dict({"A": CANARY})), "cannot be sent"),
        (lambda: squall.Secret.from_dict({"A": CANARY}).update({"A": "x"}), "no name"),
    ],
)
def test_what_makes_no_secret_is_refused_without_showing_values(make: Any, words: str) -> None:
    with pytest.raises((exception.InvalidError, exception.ExecutionError, TypeError), match=words) as caught:
        make()
    assert CANARY not in str(caught.value)


def test_nothing_that_is_printed_shows_a_value() -> None:
    secret = squall.Secret.from_dict({"A": CANARY})

    assert CANARY not in repr(secret) + str(secret) + repr(Declaration(secrets=[secret]))
    named = pickle.loads(pickle.dumps(squall.Secret.from_name("api", environment_name="test")))
    assert (named.name, named._source.environment) == ("api", "test")
