"""The catalogue of errors: every code says what happened and what to do next, and is on the page of the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from squall import errors
from squall.errors import SquallError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
OURS = {"internal", "data_loss"}
"""Codes whose cause is squall itself: there is nothing else to do than to report them."""


def catalogue() -> list[type[SquallError]]:
    found = [SquallError]
    for cls in found:
        found += [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__ and sub not in found]
    return found


CATALOGUE = catalogue()


@pytest.mark.parametrize("cls", CATALOGUE, ids=lambda cls: cls.__name__)
def test_every_error_has_a_cause_and_a_fix_of_its_own(cls: type[SquallError]) -> None:
    meaning = (vars(cls).get("__doc__") or "").strip()
    assert meaning.endswith("."), "no sentence that says what happened"
    assert cls.fix.strip().endswith((".", ")")), "no sentence that says what to do"
    assert (cls.fix == SquallError.fix) == (cls.code in OURS), "report it as a bug is all that it says"
    assert cls().message, "without a message of its own it says nothing"
    row = next((line for line in PAGE.read_text().splitlines() if f"`{cls.__name__}`" in line), "")
    assert f"| `{cls.code}` |" in row, "not on the page: run scripts/docs"
    assert cls.fix in row


def test_no_two_errors_share_a_code() -> None:
    codes = [cls.code for cls in CATALOGUE if cls is not SquallError]
    assert sorted(codes) == sorted(set(codes))
