"""Sealing: what is sealed can be opened with the key, for its purpose, and in no other way."""

from __future__ import annotations

import base64
import os

import pytest

from squall.errors import InvalidError, SecretsKeyError
from squall_service.sealing import Sealer


def a_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_what_was_sealed_opens_and_shows_nothing_before() -> None:
    sealer = Sealer(a_key())
    sealed = sealer.seal(b"canary", "secret a")

    assert b"canary" not in sealed
    assert sealed != sealer.seal(b"canary", "secret a"), "equal values must not look equal"
    assert sealer.open(sealed, "secret a") == b"canary"


def test_what_was_changed_or_put_elsewhere_is_refused() -> None:
    sealer = Sealer(a_key())
    sealed = sealer.seal(b"canary", "secret a")

    with pytest.raises(SecretsKeyError, match="changed"):
        sealer.open(sealed, "secret b")
    for place in (0, 3, 8, len(sealed) - 1):
        with pytest.raises(SecretsKeyError):
            sealer.open(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :], "secret a")


def test_a_key_is_replaced_by_putting_the_new_one_first() -> None:
    old, new = a_key(), a_key()
    sealed = Sealer(old).seal(b"canary", "x")

    both = Sealer(f"{new}, {old}")

    assert both.open(sealed, "x") == b"canary"
    assert Sealer(new).open(both.seal(b"later", "x"), "x") == b"later"
    with pytest.raises(SecretsKeyError, match="not here"):
        Sealer(new).open(sealed, "x")


def test_without_a_key_nothing_is_sealed_and_the_fix_is_told() -> None:
    for use in (lambda: Sealer("").seal(b"", "x"), lambda: Sealer("").open(b"", "x")):
        with pytest.raises(SecretsKeyError, match="no key") as caught:
            use()
        assert "SECRETS_KEY" in caught.value.hint


@pytest.mark.parametrize("text", ["short", "ä" * 43, base64.b64encode(b"x" * 31).decode(), f"{'A' * 43},!"])
def test_what_is_no_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(InvalidError, match="32 bytes") as caught:
        Sealer(text)
    assert text not in str(caught.value)
