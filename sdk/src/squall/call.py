"""FunctionCall: a call that was made and goes on by itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

from squall.blocking import blocking, blocking_iterator, blocking_static, gather, immediate
from squall.origin import refuse_client
from squall.unimplemented import NO_CLIENT, missing_classmethods

if TYPE_CHECKING:
    from squall.call_graph import InputInfo
    from squall.client import Client


class FunctionCall:
    """A call made with `spawn`, or found again by its id from any program."""

    def __init__(self, object_id: str, client: Optional[Client] = None) -> None:
        self._id = object_id
        self._client = client

    @immediate
    @classmethod
    def from_id(cls, function_call_id: str, client: None = None) -> FunctionCall:
        """The call of that id. Nothing is asked before the first use."""
        refuse_client(client)
        from squall.ids import check_call_id

        return cls(check_call_id(function_call_id))

    @property
    def object_id(self) -> str:
        """The id: text that may be stored and given to `from_id` later."""
        return self._id

    @property
    def is_hydrated(self) -> bool:
        """True: a call is its id."""
        return True

    @blocking
    def hydrate(self, client: None = None) -> FunctionCall:
        """Ask whether the server knows it. Raises `NotFoundError`."""
        refuse_client(client)
        from squall.http_api.routes import Route

        self._server().json("GET", Route.CALL.format(call=self._id))
        return self

    @blocking
    def get(self, timeout: Optional[float] = None, *, index: int = 0) -> Any:
        """The result, or the function's exception raised.

        Waits for ever, or raises the builtin TimeoutError after `timeout` seconds (0 looks once). Raises
        `OutputExpiredError` when the result is older than its retention."""
        return self._get(timeout, index)

    @blocking
    def cancel(self, terminate_containers: bool = False) -> None:
        """End it without a retry. `terminate_containers` also stops the containers that run it."""
        from squall.http_api.routes import Route

        path = Route.CALL_CANCEL.format(call=self._id)
        self._server().json("POST", path, {"terminate_containers": terminate_containers})

    @blocking
    def num_inputs(self) -> int:
        """How many inputs it has: one, or those of `experimental_spawn_map`."""
        from squall.http_api.routes import Route

        return int(self._server().json("GET", Route.CALL.format(call=self._id))["inputs"])

    @blocking_iterator
    def iter(self, start: int = 0, end: Optional[int] = None) -> Iterator[Any]:
        """The results of its inputs in their order, each as soon as it is there; `end` is not included.

        The first failure is raised at its place."""
        last = self.num_inputs() if end is None else end
        for index in range(start, last):
            yield self._get(None, index)

    @blocking
    def get_call_graph(self) -> list[InputInfo]:
        """Its inputs, with the inputs of the calls that their code made, and so on: who ran where, and how it ended."""
        from squall import call_graph

        return call_graph.of_call(self._server(), self._id)

    @immediate
    def get_dashboard_url(self) -> str:
        """Where the server shows its trace, as JSON to who sends a token. Empty when no server is known."""
        from squall import pages

        return pages.of_call(self._id, self._client)

    @blocking_static
    def gather(*function_calls: FunctionCall) -> list[Any]:
        """The results of several calls in their order. The first failure is raised at once."""
        return gather([partial(call._get, None, 0) for call in function_calls])

    def _get(self, timeout: Optional[float], index: int) -> Any:
        from squall import invoke

        client = self._server()
        return invoke.value_of(client, invoke.wait_for(client, self._id, index, timeout))

    def _server(self) -> Client:
        if self._client is None:
            from squall import session

            self._client = session.current().client
        return self._client

    def __reduce__(self) -> tuple[Any, ...]:
        return FunctionCall, (self._id,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionCall) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"squall.FunctionCall({self._id})"


for _name, _missing in missing_classmethods(
    "FunctionCall", {"client": NO_CLIENT, "logs": "Use `Function.logs`, or `squall logs APP --call fc-...`."}
).items():
    setattr(FunctionCall, _name, _missing)
