"""Environments: parts of a workspace in which names are apart. `squall.Environment.objects` makes and removes them."""

from __future__ import annotations

from typing import Any, Optional

from squall.blocking import blocking
from squall.errors import AlreadyExistsError, NotFoundError
from squall.origin import refuse_client
from squall.unimplemented import NO_CLIENT, NO_PAGE, missing_classmethods


class _Environments:
    """`Environment.objects`."""

    @blocking
    def create(self, name: str, *, allow_existing: bool = False) -> None:
        """Make one. AlreadyExistsError if it is there, unless that is allowed."""
        from squall import session
        from squall.http_api.routes import Route

        try:
            session.current().client.json("POST", Route.ENVIRONMENTS, {"name": name})
        except AlreadyExistsError:
            if not allow_existing:
                raise

    @blocking
    def list(self) -> list[Any]:
        """Handles of all of the workspace."""
        from squall import session
        from squall.http_api.routes import Route

        rows = session.current().client.json("GET", Route.ENVIRONMENTS)["environments"]
        return [Environment(row["name"]) for row in rows]

    @blocking
    def delete(self, name: str, *, allow_missing: bool = False) -> None:
        """Remove an empty one. NotFoundError if it is not there, unless that is allowed."""
        from urllib.parse import quote

        from squall import session
        from squall.http_api.routes import Route

        try:
            session.current().client.json("DELETE", Route.ENVIRONMENT.format(environment=quote(name, safe="")))
        except NotFoundError:
            if not allow_missing:
                raise


class Environment:
    """One environment, by its name: what `environment_name=` takes."""

    objects = _Environments()

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @classmethod
    def from_name(cls, name: str, *, create_if_missing: bool = False, client: None = None) -> Environment:
        """A handle. With `create_if_missing` it is made now if it is not there."""
        refuse_client(client)
        from squall.ids import check_name

        check_name(name, "environment")
        if create_if_missing:
            cls.objects.create(name, allow_existing=True)
        return cls(name)

    @classmethod
    def from_context(cls, *, client: None = None) -> Environment:
        """The one that SQUALL_ENVIRONMENT or the configuration file names."""
        refuse_client(client)
        from squall import config

        return cls(config.load().environment)

    def __eq__(self, other: Optional[object]) -> bool:
        return isinstance(other, Environment) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return f"squall.Environment({self._name!r})"


for _name, _missing in missing_classmethods(
    "Environment",
    {
        "apps": "Use `squall app list --env NAME --json`.",
        "billing": "squall runs on your machines; there is no bill.",
        "client": NO_CLIENT,
        "get_dashboard_url": NO_PAGE,
        "hydrate": "Its name is all that a program needs.",
        "members": "Tokens have roles: `squall token create --help`.",
        "object_id": "Use `name`: environments have no other id.",
        "roles": "Tokens have roles: `squall token create --help`.",
    },
).items():
    setattr(Environment, _name, _missing)
