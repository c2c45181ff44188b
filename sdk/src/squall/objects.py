"""What named objects of the server have in common: their environment, and the `.objects` manager of their class.

Owns nothing of what a secret, a dict, a queue or a volume is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional
from urllib.parse import quote

from squall.blocking import blocking
from squall.errors import AlreadyExistsError, InvalidError, NotFoundError
from squall.place import is_local

if TYPE_CHECKING:
    from squall.session import Session


class ObjectInfo(NamedTuple):
    """What `.info()` tells."""

    name: Optional[str]
    created_at: float
    """Unix seconds."""
    created_by: Optional[str]


class Place(NamedTuple):
    """A name in an environment; None: the one of the program or container that uses it."""

    name: str
    environment: Optional[str] = None


def place(name: Any, environment: Any, what: str) -> Place:
    """Checked. Raises `InvalidError`."""
    if not isinstance(name, str):
        raise InvalidError(f"the name of a {what} must be text, got {name!r}")
    if is_local():  # containers run what was checked before, and need not load the rules
        from squall.ids import check_name

        check_name(name, what)
    if environment is not None and not isinstance(environment, str):
        raise InvalidError(f"environment_name must be text, got {environment!r}")
    return Place(name, environment)


def session_and_environment(environment: Optional[str]) -> tuple[Session, str]:
    """The server, and the environment in which a name is looked up there."""
    from squall import session

    here = session.current()
    return here, environment or here.environment


def path_of(route: str, name: str) -> str:
    """The path of one object. `route`: a name in `squall.http_api.Route`, which containers load when they need it."""
    from squall.http_api import Route

    path: str = getattr(Route, route)
    return path.format(name=quote(name, safe=""))


class Objects:
    """`Class.objects`: makes, lists and deletes named objects of one kind."""

    def __init__(self, owner: Callable[[], Any], what: str, collection: str, item: str) -> None:
        self._owner, self._what, self._collection, self._item = owner, what, collection, item

    def _create(self, name: str, body: Mapping[str, Any], environment: Optional[str], allow_existing: bool) -> None:
        wanted = place(name, environment, self._what)
        here, chosen = session_and_environment(environment)
        try:
            here.client.json(
                "POST", path_of(self._collection, ""), {**body, "name": wanted.name, "environment": chosen}
            )
        except AlreadyExistsError:
            if not allow_existing:
                raise

    @blocking
    def create(
        self,
        name: str,
        *,
        environment_name: Optional[str] = None,
        allow_existing: bool = False,
    ) -> None:
        """Make an empty one. AlreadyExistsError if it is there, unless that is allowed."""
        self._create(name, {}, environment_name, allow_existing)

    @blocking
    def list(
        self,
        *,
        max_objects: Optional[int] = None,
        created_before: Any = None,
        environment_name: Optional[str] = None,
    ) -> list[Any]:
        """Handles of those that have names, newest first. `created_before`: a datetime or Unix seconds."""
        from squall.client import query

        here, chosen = session_and_environment(environment_name)
        rows = here.client.json("GET", query(path_of(self._collection, ""), environment=chosen))["objects"]
        if created_before is not None:
            limit = created_before.timestamp() if hasattr(created_before, "timestamp") else float(created_before)
            rows = [row for row in rows if row["created_at"] < limit]
        rows.sort(key=lambda row: row["created_at"], reverse=True)
        return [self._owner().from_name(row["name"], environment_name=chosen) for row in rows[:max_objects]]

    @blocking
    def delete(self, name: str, *, allow_missing: bool = False, environment_name: Optional[str] = None) -> None:
        """Remove it and what is in it. NotFoundError if it is not there, unless that is allowed."""
        from squall.client import query

        wanted = place(name, environment_name, self._what)
        here, chosen = session_and_environment(environment_name)
        try:
            here.client.json("DELETE", query(path_of(self._item, wanted.name), environment=chosen))
        except NotFoundError:
            if not allow_missing:
                raise
