"""Versions of an app: what a rollback makes of its record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from squall.errors import ConflictError, NotFoundError
from squall_contracts.functions import AppRecord, DeployedVersion
from squall_gateway.versions import history_of, rolled_back


def deployed(versions: int) -> AppRecord:
    history = tuple(DeployedVersion(n, float(n), {"f": f"fu-{n}"}) for n in range(1, versions + 1))
    return AppRecord(
        app_id="ap-1",
        name="shop",
        workspace="main",
        environment="main",
        state="deployed",
        version=versions,
        functions={"f": f"fu-{versions}"},
        created_at=1.0,
        updated_at=2.0,
        history=history,
    )


def test_a_rollback_is_a_new_version_with_the_functions_of_the_earlier_one() -> None:
    app = rolled_back(deployed(3), 1, now=9.0)

    assert (app.version, app.functions, app.updated_at) == (4, {"f": "fu-1"}, 9.0)
    assert app.history[-1] == DeployedVersion(4, 9.0, {"f": "fu-1"}, rolled_back_to=1)
    assert [row.version for row in history_of(app) if row.current] == [4]


def test_without_a_version_each_rollback_goes_one_deployment_further_back() -> None:
    once = rolled_back(deployed(3), None, now=9.0)
    twice = rolled_back(once, None, now=10.0)

    assert [app.functions["f"] for app in (once, twice)] == ["fu-2", "fu-1"]
    with pytest.raises(NotFoundError, match="no earlier version"):
        rolled_back(twice, None, now=11.0)


def test_going_back_to_a_rollback_names_the_version_it_came_from() -> None:
    app = rolled_back(rolled_back(deployed(3), 1, now=9.0), 3, now=10.0)
    again = rolled_back(app, 4, now=11.0)

    assert (again.functions, again.history[-1].rolled_back_to) == ({"f": "fu-1"}, 1)


@pytest.mark.parametrize(
    ("app", "version", "refusal"),
    [
        (deployed(3), 3, ConflictError),
        (deployed(3), 7, NotFoundError),
        (deployed(1), None, NotFoundError),
        (replace(deployed(3), state="stopped"), 1, ConflictError),
        (replace(deployed(3), state="ephemeral"), None, ConflictError),
    ],
)
def test_what_cannot_be_gone_back_to_is_refused(app: AppRecord, version: int | None, refusal: type) -> None:
    with pytest.raises(refusal):
        rolled_back(app, version, now=9.0)
