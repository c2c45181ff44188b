"""What named objects of the server have in common: their environment, and the `.objects` manager of their class.

Owns nothing of what a secret, a dict, a queue or a volume is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union
from urllib.parse import quote

from squall.blocking import blocking, immediate
from squall.blocking import run as run_in_thread
from squall.errors import AlreadyExistsError, ExecutionError, InvalidError, NotFoundError, SquallError
from squall.place import is_local
from squall.unimplemented import NO_CLIENT, NO_PAGE, OLD_NAMES, Gone, missing_method

if TYPE_CHECKING:
    from datetime import datetime

    from squall.session import Session


RENEW_S = 60.0


class ObjectInfo(NamedTuple):
    """What `.info()` tells."""

    name: Optional[str]
    created_at: datetime
    created_by: Optional[str]

    @classmethod
    def of(cls, name: Optional[str], created_at: float) -> ObjectInfo:
        """From what the server says."""
        from datetime import datetime

        return cls(name, datetime.fromtimestamp(created_at).astimezone(), None)


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
    """The path of one object. `route`: a name in `http_api.routes.Route`, which containers load when needed."""
    from squall.http_api.routes import Route

    path: str = getattr(Route, route)
    return path.format(name=quote(name, safe=""))


class Handle:
    """A named object, or one without a name, that is looked up when it is first used."""

    KIND = ""
    """As in `squall.http_api.routes.Route`: DICT or QUEUE."""
    WHAT = ""

    def __init__(self, source: Union[Place, str], create: bool = False) -> None:
        """`source`: a name, or an id."""
        self._source = source
        self._create = create
        self._id = source if isinstance(source, str) else ""
        self._known: dict[str, Any] = {}

    def __init_subclass__(cls) -> None:
        for name, instead in OLD_NAMES.get(cls.__name__, {}).items():
            setattr(cls, name, Gone(f"{cls.__name__}.{name}", instead))

    @immediate
    @classmethod
    def lookup(cls, name: str, **others: Any) -> Any:
        """The old form of `from_name`, which asks at once: it works, and says what it is called now."""
        return _under_old_name(cls, "lookup", name, others).hydrate()

    @immediate
    @classmethod
    def persisted(cls, name: str, **others: Any) -> Any:
        """The old form of `from_name(..., create_if_missing=True)`: it works, and says what it is called now."""
        return _under_old_name(cls, "persisted", name, {"create_if_missing": True, **others})

    @property
    def name(self) -> Optional[str]:
        """Its name; None if it has none or is known by its id only."""
        return self._source.name if isinstance(self._source, Place) else None

    @property
    def object_id(self) -> str:
        """Its id on the server. Raises `ExecutionError` before it was used or hydrated."""
        if not self._id:
            raise ExecutionError(f"{self!r} has not been looked up", fix="Use it, or call `hydrate()`, first.")
        return self._id

    @property
    def is_hydrated(self) -> bool:
        """Whether it has been looked up. Asks nothing."""
        return bool(self._id)

    @blocking
    def hydrate(self, client: None = None) -> Any:
        """Look it up now rather than at the first use."""
        from squall.origin import refuse_client

        refuse_client(client)
        self._looked_up()
        return self

    @blocking
    def info(self) -> ObjectInfo:
        """Name and age."""
        if not isinstance(self._source, Place):
            raise ExecutionError(f"{self!r} has no name", fix="Only objects with names have infos.")
        self._looked_up()
        return ObjectInfo.of(self.name, self._known["created_at"])

    def _looked_up(self) -> str:
        """Its id."""
        if not self._id:
            assert isinstance(self._source, Place)
            here, environment = session_and_environment(self._source.environment)
            self._known = self._found(here, environment)
            self._id = self._known["id"]
        return self._id

    def _found(self, here: Session, environment: str) -> dict[str, Any]:
        from squall.client import query

        assert isinstance(self._source, Place)
        path = query(path_of(self.KIND, self._source.name), environment=environment)
        try:
            return dict(here.client.json("GET", path))
        except NotFoundError:
            if not self._create:
                raise
        body = {"name": self._source.name, "environment": environment}
        try:
            return dict(here.client.json("POST", path_of(f"{self.KIND}S", ""), body))
        except AlreadyExistsError:  # somebody was faster
            return dict(here.client.json("GET", path))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ((self._id or self._source), self._create)

    def __repr__(self) -> str:
        label = repr(self._source.name) if isinstance(self._source, Place) else self._source
        return f"squall.{self.WHAT.capitalize()}({label})"


def _under_old_name(cls: Any, old: str, name: str, others: Mapping[str, Any]) -> Any:
    from squall.old_names import warn_renamed

    warn_renamed(f"{cls.__name__}.{old} is called {cls.__name__}.from_name now", declaring=old == "persisted")
    return cls.from_name(name, **others)


for _name, _instead in (("client", NO_CLIENT), ("get_dashboard_url", NO_PAGE)):
    setattr(Handle, _name, missing_method(f"{_name} of this handle", _instead))


class Ephemeral:
    """`with Dict.ephemeral() as d:`, also `async with`: an object without a name for the time of the block."""

    def __init__(self, owner: type[Handle], environment: Optional[str]) -> None:
        self._owner, self._environment = owner, environment
        self._ended = threading.Event()
        self._handle: Any = None

    def __enter__(self) -> Any:
        here, chosen = session_and_environment(self._environment)
        body = {"environment": chosen, "ephemeral": True}
        made = here.client.json("POST", path_of(f"{self._owner.KIND}S", ""), body)
        self._handle = self._owner(made["id"])
        threading.Thread(target=self._renew, args=(here,), name="squall-renew", daemon=True).start()
        return self._handle

    def _renew(self, here: Session) -> None:
        while not self._ended.wait(RENEW_S):
            with contextlib.suppress(SquallError):  # it lives for five minutes: the next try comes in time
                here.client.json("POST", _of_id(self._handle.object_id))

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        here, _environment = session_and_environment(self._environment)
        with contextlib.suppress(SquallError):  # it goes by itself
            here.client.json("DELETE", _of_id(self._handle.object_id))

    async def __aenter__(self) -> Any:
        return await run_in_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await run_in_thread(self.__exit__)


def _of_id(object_id: str) -> str:
    from squall.http_api.routes import Route

    return Route.OBJECT.format(object=object_id)


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
    def rename(self, old_name: str, new_name: str, *, environment_name: Optional[str] = None) -> None:
        """Give one another name. It keeps its id and what is in it."""
        from squall.http_api.routes import Route

        place(new_name, environment_name, self._what)
        here, chosen = session_and_environment(environment_name)
        path = Route.OBJECT_RENAME.format(kind=f"{self._what}s", name=quote(old_name, safe=""))
        here.client.json("POST", path, {"name": new_name, "environment": chosen})

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
