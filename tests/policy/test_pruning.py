"""Which images are needed: by versions that can run or come back, by what is on its way, by names."""

from __future__ import annotations

from typing import Any

import pytest

from squall_builder.policy.requests import Build, Later, judge
from squall_builder.state import Known
from squall_gateway.policy.pruning import PUBLISHING_S, AppView, InUse, VersionView, needed

NOW = 1_700_000_000.0


def version(**fields: Any) -> VersionView:
    given = {"function_id": "fu-1", "app_id": "ap-1", "version": 3, "image": "im-1", "created_at": 0.0, **fields}
    return VersionView(**{"published_id": given["function_id"], **given})


def app(**fields: Any) -> AppView:
    return AppView(**{"stopped": False, "version": 3, "functions": {"fu-1"}, **fields})


@pytest.mark.parametrize(
    ("one", "of", "stays"),
    [
        (version(), app(), True),
        (version(version=1), app(), True),  # the app can be rolled back to it
        (version(version=2, function_id="fu-2"), app(), False),
        (version(version=2, function_id="fu-2", published_id="fu-1"), app(), True),  # called with options
        (version(version=3, function_id="fu-2"), app(), True),  # of an app whose one version grows
        (version(version=4, function_id="fu-2"), app(), True),  # being published
        (version(), app(stopped=True), False),
        (version(version=4, function_id="fu-2"), app(stopped=True), True),  # deployed anew at the moment
        (version(created_at=NOW - 1), None, True),  # of a new app
        (version(created_at=NOW - PUBLISHING_S - 1), None, False),
    ],
)
def test_an_image_is_needed_by_versions_that_can_run(one: VersionView, of: AppView | None, stays: bool) -> None:
    apps = {} if of is None else {"ap-1": of}
    assert (needed(InUse(apps=apps, versions=[one], pooled=set(), named=set()), NOW) == {"im-1"}) is stays


def test_a_build_waits_while_a_builder_removes_the_image() -> None:
    removed = Known(state="removing", updated_at=NOW - 1, removed_until=NOW + 1)
    assert isinstance(judge(NOW, removed, NOW), Later)
    assert isinstance(judge(NOW, removed, NOW + 1), Build), "that builder was killed"
    assert isinstance(judge(NOW, Known(state="withdrawn", updated_at=NOW), NOW), Build)


def test_an_image_is_needed_by_what_is_left_of_calls_and_by_its_names() -> None:
    old = version(function_id="fu-9", version=1)
    found = InUse(apps={"ap-1": app(stopped=True)}, versions=[old], pooled={"fu-9"}, named={"im-2"})
    assert needed(found, NOW) == {"im-1", "im-2"}
