"""Dict: keys and values on the server, shared by all programs and containers of an environment."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Optional, Union

from squall.blocking import blocking, blocking_iterator, immediate
from squall.objects import Ephemeral, Handle, Objects, place, session_and_environment
from squall.origin import refuse_client

if TYPE_CHECKING:
    from squall.client import Client
    from squall_runner.frames import Frame

MAX_VALUE_BYTES = 100 << 20
MAX_UPDATE = 10_000
UPDATE_BYTES = 4 << 20
"""Of one request of an update."""
NOTHING: Any = object()


class Dict(Handle):
    """Keys and values of any kind that can be pickled. A value that was got is a copy: put it again to change it.

    Entries that nobody reads or writes for seven days go away."""

    KIND, WHAT = "DICT", "dict"
    objects: Objects

    @immediate
    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        environment_name: Optional[str] = None,
        create_if_missing: bool = False,
        client: None = None,
    ) -> Dict:
        """A dict of the server. Nothing is asked before it is used."""
        refuse_client(client)
        return cls(place(name, environment_name, "dict"), create_if_missing)

    @immediate
    @classmethod
    def from_id(cls, dict_id: str, client: None = None) -> Dict:
        """A dict by its id."""
        refuse_client(client)
        return cls(dict_id)

    @classmethod
    def ephemeral(cls, client: None = None, environment_name: Optional[str] = None) -> Ephemeral:
        """A dict without a name for the time of a `with` (or `async with`) block."""
        refuse_client(client)
        return Ephemeral(cls, environment_name)

    # --- single keys ---

    @blocking
    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self._value("get", key, default)

    @blocking
    def contains(self, key: Any) -> bool:
        """Whether the key is there."""
        return bool(self._one(_client(), _meta("get", key)).meta["found"])

    @blocking
    def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        """Set a key; whether it was set. With `skip_if_exists` only if it is not there: of any number of callers one
        gets True."""
        client = _client()
        meta, data = _encoded(client, value)
        absent = {"absent": True} if skip_if_exists else {}
        return bool(self._one(client, _meta("put", key, {**meta, **absent}), data).meta["put"])

    @blocking
    def pop(self, key: Any, default: Any = NOTHING) -> Any:
        """Remove a key and return its value. KeyError if it is not there and there is no default."""
        value = self._value("pop", key, NOTHING if default is NOTHING else default)
        if value is NOTHING:
            raise KeyError(key)
        return value

    @blocking
    def update(self, other: Union[Mapping[Any, Any], Iterable[tuple[Any, Any]]] = (), /, **more: Any) -> None:
        """Set many keys: a dict or pairs, and keywords."""
        from squall.errors import RequestSizeError

        pairs = {**dict(other), **more}
        if len(pairs) > MAX_UPDATE:
            raise RequestSizeError(f"an update can have {MAX_UPDATE} entries, got {len(pairs)}", fix="Make several.")
        client, batch, size = _client(), [], 0
        for key, value in pairs.items():
            meta, data = _encoded(client, value)
            batch.append(_frame(_meta("put", key, meta), data))
            size += len(batch[-1])
            if size > UPDATE_BYTES:
                self._ops(client, batch)
                batch, size = [], 0
        if batch:
            self._ops(client, batch)

    def __getitem__(self, key: Any) -> Any:
        value = self._value("get", key, NOTHING)
        if value is NOTHING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        self.pop(key)

    def __contains__(self, key: Any) -> bool:
        return self.contains(key)

    # --- all keys ---

    @blocking
    def len(self) -> int:
        """How many keys there are. Looks at all of them."""
        from squall import together

        client = _client()
        op = together.Op({"op": "count", "object": self._looked_up()}, changes=False)

        def alone() -> int:
            return int(client.json("GET", self._path("DICT_COUNT"))["count"])

        return together.send(client, op, alone, lambda frame: int(frame.meta["count"]))

    @blocking
    def clear(self) -> None:
        """Remove all keys."""
        _client().json("DELETE", self._path("DICT_COUNT"))

    @blocking_iterator
    def keys(self) -> Iterator[Any]:
        """The keys, in no order. What changes meanwhile may be missed."""
        from squall import payload

        for _, frame in self._all(keys_only=True):
            yield payload.decode("pickle", bytes(frame.payload[: frame.meta["size"]]))

    @blocking_iterator
    def values(self) -> Iterator[Any]:
        """The values, in no order."""
        from squall.stored import decoded

        for client, frame in self._all(keys_only=False):
            yield decoded(client, frame.meta, frame.payload[frame.meta["size"] :])

    @blocking_iterator
    def items(self) -> Iterator[tuple[Any, Any]]:
        """Keys and values, in no order."""
        from squall import payload
        from squall.stored import decoded

        for client, frame in self._all(keys_only=False):
            size = frame.meta["size"]
            key = payload.decode("pickle", bytes(frame.payload[:size]))
            yield key, decoded(client, frame.meta, frame.payload[size:])

    def __len__(self) -> int:
        return self.len()

    def __bool__(self) -> bool:
        return True

    # --- requests ---

    def _value(self, what: str, key: Any, default: Any) -> Any:
        from squall.stored import decoded

        client = _client()
        frame = self._one(client, _meta(what, key))
        return decoded(client, frame.meta, frame.payload) if frame.meta["found"] else default

    def _one(self, client: Client, meta: dict[str, Any], data: bytes = b"") -> Frame:
        from squall import together

        op = together.Op({**meta, "object": self._looked_up()}, data, changes=meta["op"] != "get")
        return together.send(client, op, lambda: self._ops(client, [_frame(meta, data)])[0], lambda frame: frame)

    def _ops(self, client: Client, ops: list[bytes]) -> list[Frame]:
        from squall.stored import HEADERS, answer_frames

        return list(answer_frames(client.request("POST", self._path("DICT_OPS"), HEADERS, b"".join(ops)).body))

    def _all(self, *, keys_only: bool) -> Iterator[tuple[Client, Frame]]:
        from squall.client import query
        from squall.stored import answer_frames

        client, after = _client(), 0
        while True:
            path = query(self._path("DICT_ITEMS"), after=after, keys=int(keys_only))
            *found, last = answer_frames(client.request("GET", path).body)
            for frame in found:
                yield client, frame
            after = last.meta["next"]
            if not after:
                return

    def _path(self, route: str) -> str:
        from squall.http_api.routes import Route

        path: str = getattr(Route, route)
        return path.format(object=self._looked_up())


Dict.objects = Objects(lambda: Dict, "dict", "DICTS", "DICT")


def _client() -> Client:
    return session_and_environment(None)[0].client


def _encoded(client: Client, value: Any) -> tuple[dict[str, Any], bytes]:
    from squall.stored import encoded

    return encoded(client, value, "the value", MAX_VALUE_BYTES)


def _meta(what: str, key: Any, more: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What an operation says about itself."""
    from squall.stored import pickled_key

    encoded_key = base64.b64encode(pickled_key(key, "the object")).decode()
    # A repeated request is known by its id: what it has done already is not done again.
    request = {} if what == "get" else {"request": secrets.token_hex(8)}
    return {"op": what, "key": encoded_key, **request, **more}


def _frame(meta: dict[str, Any], data: bytes) -> bytes:
    from squall.http_api.protocol import FrameKind, frames

    return frames.encode(FrameKind.ENTRY, meta, data)
