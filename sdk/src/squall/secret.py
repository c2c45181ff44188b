"""Secret: environment variables whose values are kept encrypted and are given to the containers that declare them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from squall.blocking import blocking, immediate
from squall.declaration import check_variables
from squall.errors import ExecutionError, InvalidError
from squall.objects import ObjectInfo, Objects, Place, path_of, place, session_and_environment
from squall.origin import refuse_client
from squall.place import is_local
from squall.unimplemented import NO_CLIENT, NO_PAGE, missing_classmethods

if TYPE_CHECKING:
    from squall.session import Session
    from squall.spec import SecretRef

Values = Mapping[str, Optional[str]]
NO_NAME = "a secret made from values has no name"


class Secret:
    """Environment variables for containers. Give it to a function: `@app.function(secrets=[...])`.

    Values are read from where they are when the app is run or deployed; a secret with a name is looked up when a
    container starts, so that the next container sees a changed one.
    """

    objects: SecretObjects

    def __init__(self, label: str, source: Union[Place, Callable[[], Values]], required: Sequence[str] = ()) -> None:
        self._label = label
        self._source = source
        self._required = tuple(required)
        self._found = False
        self._id: Optional[str] = None

    @immediate
    @classmethod
    def lookup(cls, name: str, **others: Any) -> Secret:
        """The old form of `from_name`: it works, and says what it is called now."""
        from squall.old_names import warn_renamed

        warn_renamed("Secret.lookup is called Secret.from_name now", declaring=True)
        return cls.from_name(name, **others)

    @immediate
    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: Optional[str] = None,
        required_keys: Sequence[str] = (),
        client: None = None,
    ) -> Secret:
        """A secret of the server. Nothing is asked before it is used; a missing one, or a missing key of
        `required_keys`, is an error when the app is run or deployed, and keeps containers from starting."""
        refuse_client(client)
        if isinstance(required_keys, str) or not all(isinstance(key, str) for key in required_keys):
            raise InvalidError(f"required_keys must be a list of names, got {required_keys!r}")
        return cls(f"Secret.from_name({name!r})", place(name, environment_name, "secret"), required_keys)

    @immediate
    @classmethod
    def from_dict(cls, env_dict: Values = {}) -> Secret:  # noqa: B006 - it is not changed
        """Values that the program has: text, or None for what is left out. They are not part of its source."""
        if not isinstance(env_dict, Mapping):
            raise InvalidError(f"Secret.from_dict takes a dict, got {type(env_dict).__name__}")
        values = {name: value for name, value in env_dict.items() if value is not None}
        check_values("Secret.from_dict", values)
        return cls(f"Secret.from_dict([{', '.join(values)}])", lambda: values)

    @immediate
    @classmethod
    def from_local_environ(cls, env_keys: Sequence[str]) -> Secret:
        """Variables of this process's environment. Raises `InvalidError` for one that is not set."""
        if isinstance(env_keys, str):
            raise InvalidError("Secret.from_local_environ takes a list of names", fix=f"Write [{env_keys!r}].")
        keys = list(env_keys)
        if is_local():
            missing = [key for key in keys if key not in os.environ]
            if missing:
                raise InvalidError(
                    f"Secret.from_local_environ: {', '.join(missing)} not set here", fix="Set it and run again."
                )
            check_values("Secret.from_local_environ", {key: os.environ[key] for key in keys})
        values = {key: os.environ[key] for key in keys} if is_local() else {}
        return cls(f"Secret.from_local_environ({keys!r})", lambda: values)

    @immediate
    @classmethod
    def from_dotenv(
        cls, path: Union[str, os.PathLike[str], None] = None, *, filename: str = ".env", client: None = None
    ) -> Secret:
        """The values of a `.env` file: of that folder or file's folder (default: the working folder), or the nearest
        one above it. It is read when the app is run or deployed."""
        refuse_client(client)
        start = os.path.abspath(os.fspath(path) if path is not None else os.getcwd())

        def read() -> Values:
            from squall.dotenv import read_nearest

            values = read_nearest(start, filename)
            check_values(f"Secret.from_dotenv({filename!r})", values)
            return values

        return cls(f"Secret.from_dotenv({filename!r})", read)

    # --- what is done with it ---

    @property
    def name(self) -> Optional[str]:
        """Its name on the server; None for values."""
        return self._source.name if isinstance(self._source, Place) else None

    @property
    def label(self) -> str:
        """What it is called in recipes of images: without its values, the same in containers."""
        if isinstance(self._source, Place):
            environment = self._source.environment
            return f"{self._source.name}@{environment}" if environment else self._source.name
        return self._label

    @property
    def is_hydrated(self) -> bool:
        """Whether it was found on the server; values need no look-up."""
        return self._found or not isinstance(self._source, Place)

    @property
    def object_id(self) -> str:
        """Its id on the server. Raises `ExecutionError` before it was looked up, and for values."""
        if self._id is None:
            raise ExecutionError(f"{self._label} has no id yet", fix="Call `.hydrate()` first; only names have ids.")
        return self._id

    @blocking
    def hydrate(self, client: None = None) -> Secret:
        """Ask the server for it now. Raises `NotFoundError`; `InvalidError` for a key that is required and missing."""
        refuse_client(client)
        keys = self._look()["keys"] if isinstance(self._source, Place) else ()
        missing = [key for key in self._required if key not in keys]
        if missing:
            raise InvalidError(f"secret {self.name!r} has no {', '.join(missing)}", fix=missing_fix(self.name, missing))
        return self

    @blocking
    def info(self) -> ObjectInfo:
        """Name and age."""
        found = self._look()
        return ObjectInfo.of(found["name"], found["created_at"])

    @blocking
    def update(self, env_dict: Values) -> None:
        """Set some of its values (None removes one). Containers that start from now on see them."""
        source = self._named("update")
        values = dict(env_dict)
        check_values("Secret.update", {name: value for name, value in values.items() if value is not None})
        here, environment = session_and_environment(source.environment)
        body = {"environment": environment, "values": values}
        here.client.json("POST", path_of("SECRET", source.name), body)

    def _look(self) -> dict[str, Any]:
        from squall.client import query

        source = self._named("look at")
        here, environment = session_and_environment(source.environment)
        found: dict[str, Any] = here.client.json("GET", query(path_of("SECRET", source.name), environment=environment))
        self._found, self._id = True, found["id"]
        return found

    def _named(self, doing: str) -> Place:
        if not isinstance(self._source, Place):
            raise ExecutionError(f"cannot {doing} {self._label}: {NO_NAME}", fix="Use Secret.from_name(...).")
        return self._source

    def reference(self, session: Optional[Session], environment: str) -> SecretRef:
        """How a spec names it. Values go to the server, which keeps them encrypted under an id."""
        from squall.spec import SecretRef

        if isinstance(self._source, Place):
            return SecretRef(self._source.name, self._source.environment or environment, "", self._required)
        assert session is not None
        values = dict(self._source())
        answer = session.client.json(
            "POST", path_of("SECRET_VALUES", ""), {"environment": environment, "values": values}
        )
        return SecretRef("", environment, answer["id"])

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self._source, Place):
            raise InvalidError(f"{self._label} cannot be sent: it would carry its values", fix="Use a named secret.")
        return _named_secret, (self._source.name, self._source.environment, self._required)

    def __repr__(self) -> str:
        return f"squall.{self._label}"


class SecretObjects(Objects):
    """`Secret.objects`."""

    @blocking
    def create(
        self,
        name: str,
        env_dict: Values,
        *,
        allow_existing: bool = False,
        environment_name: Optional[str] = None,
    ) -> None:
        """Make one. AlreadyExistsError if it is there, unless that is allowed: then it stays as it is."""
        values = {key: value for key, value in env_dict.items() if value is not None}
        check_values("Secret.objects.create", values)
        self._create(name, {"values": values}, environment_name, allow_existing)


for _name, _missing in missing_classmethods("Secret", {"client": NO_CLIENT, "get_dashboard_url": NO_PAGE}).items():
    setattr(Secret, _name, _missing)
Secret.objects = SecretObjects(lambda: Secret, "secret", "SECRETS", "SECRET")


def checked(where: str, secrets: Any) -> tuple[Secret, ...]:
    """What `secrets=` was given. Raises `InvalidError`."""
    if isinstance(secrets, (Secret, str, Mapping)) or not all(isinstance(each, Secret) for each in secrets or ()):
        raise InvalidError(f"secrets= of {where} must be a list of squall.Secret, got {type_of(secrets)}")
    return tuple(secrets or ())


def type_of(secrets: Any) -> str:
    """In words that show no value."""
    if isinstance(secrets, (list, tuple)):
        return f"a list of {', '.join(sorted({type(each).__name__ for each in secrets}))}"
    return f"a {type(secrets).__name__}"


def check_values(where: str, values: Mapping[Any, Any]) -> None:
    """Raise `InvalidError`, without showing any value."""
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidError(f"{where} must map text to text: {name!r} is a {type(value).__name__}")
    check_variables(where, dict.fromkeys(values, ""))
    bad = [name for name, value in values.items() if "\0" in value]
    if bad:
        raise InvalidError(f"{where}: the value of {bad[0]} contains a null character")


def missing_fix(name: Optional[str], keys: Sequence[str]) -> str:
    """What to do about keys that are not there."""
    return f"Add it: `squall secret update {name} " + " ".join(f"{key}=..." for key in keys) + "`."


def _named_secret(name: str, environment: Optional[str], required: Sequence[str]) -> Secret:
    return Secret.from_name(name, environment_name=environment, required_keys=required)
