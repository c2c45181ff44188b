"""Options of a user's function: what its annotations mean on the command line."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Literal

import pytest

from squall.cli.options import HelpWanted, of_callable
from squall.errors import InvalidError, UsageError


def parse(function: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    return of_callable(function).parse(arguments)[1]


def every_type(
    text: str,
    count: int = 3,
    share: float = 0.5,
    when: datetime.datetime | None = None,
    kind: Literal["small", "large"] = "small",
    level: Literal[1, 2] = 1,
    fast: bool = False,
    *,
    only_by_name: str = "x",
) -> None: ...


def test_values_become_what_the_annotations_say() -> None:
    words = "--text a --count 7 --share 0.25 --when 2025-01-31 --kind large --level 2 --fast --only-by-name y"

    assert parse(every_type, *words.split()) == {
        "text": "a",
        "count": 7,
        "share": 0.25,
        "when": datetime.datetime(2025, 1, 31),  # noqa: DTZ001 - as naive as it was typed
        "kind": "large",
        "level": 2,
        "fast": True,
        "only_by_name": "y",
    }


def test_what_is_not_given_keeps_the_default_of_the_function() -> None:
    assert parse(every_type, "--text", "a") == {"text": "a"}


@pytest.mark.parametrize("text", ["2025-01-31", "2025-01-31T10:20:30", "2025-01-31 10:20:30"])
def test_a_date_is_understood_with_and_without_a_time(text: str) -> None:
    assert parse(every_type, "--text", "a", "--when", text)["when"].date() == datetime.date(2025, 1, 31)


def test_a_value_may_follow_an_equals_sign_or_begin_with_a_dash() -> None:
    assert parse(every_type, "--text=-a=b", "--count", "-7") == {"text": "-a=b", "count": -7}


def test_a_flag_can_be_turned_off() -> None:
    def main(fast: bool = True) -> None: ...

    assert parse(main, "--no-fast") == {"fast": False}


def test_a_parameter_without_annotation_is_text_even_when_its_default_is_a_number() -> None:
    def main(n=1): ...  # type: ignore[no-untyped-def]

    assert parse(main, "--n", "2") == {"n": "2"}


def test_a_lone_star_parameter_takes_everything_as_it_is() -> None:
    def main(*argv: str) -> None: ...

    assert of_callable(main).parse(["--x", "1", "-h"]) == (("--x", "1", "-h"), {})


@pytest.mark.parametrize(
    ("arguments", "cause", "fix"),
    [
        ([], "--text is missing", "--text TEXT"),
        (["--text", "a", "--count", "many"], "--count 'many' is not an integer", "--count INTEGER"),
        (["--text", "a", "--kind", "huge"], "not one of the choices", "small, large"),
        (["--text", "a", "--level", "3"], "not one of the choices", "1, 2"),
        (["--text", "a", "--when", "tomorrow"], "not a date", "--when DATETIME"),
        (["--text"], "--text needs a value", "--text TEXT"),
        (["--txet", "a"], "no such option: --txet", "--text"),
        (["a"], "unexpected argument 'a'", "--text TEXT"),
        (["--text", "a", "--fast=yes"], "--fast takes no value", "--no-fast"),
    ],
)
def test_a_wrong_option_is_told_with_the_right_one(arguments: list[str], cause: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        of_callable(every_type).parse(arguments)

    assert cause in caught.value.message
    assert fix in caught.value.hint


@pytest.mark.parametrize("annotation", [list[str], dict, "list[int]", int | str])
def test_an_annotation_that_text_cannot_become_is_refused(annotation: Any) -> None:
    def main(value: Any) -> None: ...

    main.__annotations__["value"] = annotation

    with pytest.raises(InvalidError, match="'value' of main"):
        of_callable(main)


def test_star_parameters_beside_others_are_refused() -> None:
    def main(n: int, **more: int) -> None: ...

    with pytest.raises(InvalidError, match=r"\*\*more"):
        of_callable(main)


def test_an_annotation_that_does_not_exist_is_told() -> None:
    def main(n: int) -> None: ...

    main.__annotations__["n"] = "Missing"

    with pytest.raises(InvalidError, match="Missing"):
        of_callable(main)


def test_help_is_noticed_among_options() -> None:
    with pytest.raises(HelpWanted):
        of_callable(every_type).parse(["--text", "a", "--help"])


def test_help_names_what_is_required_and_what_is_the_default() -> None:
    rows = dict(of_callable(every_type).help())

    assert rows["--text TEXT"] == "required"
    assert rows["--count INTEGER"] == "default: 3"
    assert rows["--fast / --no-fast"] == "default: False"
