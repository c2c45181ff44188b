"""The Engine API over a unix socket: the few requests that containers need. Blocking: for threads.

Owns the connection and turns what the engine refuses into `OSError`. Knows nothing of functions.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

VERSION = "v1.40"
"""Of the API: the oldest with all that is used here (Docker 19.03)."""
ASK_S, LOAD_S = 30.0, 600.0
_GONE = (404, 409)
_FRAME = 8


class EngineError(OSError):
    """The engine does not answer, or refuses; the message is its own."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """One engine."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        transport = httpx.HTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None))
        self._client = httpx.Client(transport=transport, base_url=f"http://engine/{VERSION}", timeout=ASK_S)

    def close(self) -> None:
        """No more requests."""
        self._client.close()

    def info(self) -> dict[str, Any]:
        """What it says of itself."""
        found: dict[str, Any] = self._ask("GET", "/info")
        return found

    def has_image(self, name: str) -> bool:
        """Whether it has an image of that name."""
        try:
            self._ask("GET", f"/images/{quote(name, safe='')}/json")
        except EngineError as error:
            if error.status == 404:
                return False
            raise
        return True

    def load(self, archive: Path) -> None:
        """Images from a file as `docker save` makes them."""
        with archive.open("rb") as file, self._refusals():
            answer = self._client.post("/images/load?quiet=1", content=file, timeout=LOAD_S)
        said = self._checked(answer).text
        if '"error"' in said:
            raise EngineError(f"the engine did not take an image: {said.strip()[-500:]}")

    def images(self, label: str) -> list[str]:
        """Names of the images with a label, oldest first."""
        found = self._ask("GET", "/images/json", params={"filters": json.dumps({"label": [label]})})
        ordered = sorted(found, key=lambda image: int(image.get("Created", 0)))
        return [name for image in ordered for name in image.get("RepoTags") or ()]

    def remove_image(self, name: str) -> None:
        """Unless a container uses it."""
        with contextlib.suppress(EngineError):
            self._ask("DELETE", f"/images/{quote(name, safe='')}")

    def create(self, name: str, body: Mapping[str, Any]) -> str:
        """The id of a new container."""
        return str(self._ask("POST", "/containers/create", params={"name": name}, json=body)["Id"])

    def start(self, container: str) -> None:
        """Start what was created."""
        self._ask("POST", f"/containers/{container}/start")

    def state(self, container: str) -> dict[str, Any]:
        """Its `State`; empty when it is gone."""
        try:
            found: dict[str, Any] = self._ask("GET", f"/containers/{container}/json")["State"]
        except EngineError as error:
            if error.status == 404:
                return {}
            raise
        return found

    def limit_cpu(self, container: str, cores: float) -> None:
        """From now on."""
        period = 100_000
        quota = {"CpuPeriod": period, "CpuQuota": max(1_000, int(cores * period))}
        self._ask("POST", f"/containers/{container}/update", json=quota)

    def kill(self, container: str) -> None:
        """SIGKILL to everything in it; nothing if it has ended."""
        self._unless_gone("POST", f"/containers/{container}/kill")

    def remove(self, container: str) -> None:
        """With its volumes; killed first if it runs."""
        self._unless_gone("DELETE", f"/containers/{container}", params={"force": "1", "v": "1"})

    def containers(self, label: str) -> list[str]:
        """Ids of all containers with a label, ended ones too."""
        params = {"all": "1", "filters": json.dumps({"label": [label]})}
        return [str(found["Id"]) for found in self._ask("GET", "/containers/json", params=params)]

    def prepare_command(self, container: str, body: Mapping[str, Any]) -> str:
        """The id of a command that is to be run in a container."""
        return str(self._ask("POST", f"/containers/{container}/exec", json=body)["Id"])

    def run_command(self, command: str) -> Iterator[tuple[int, bytes]]:
        """Run it to its end: what it prints, by descriptor."""
        body = {"Detach": False, "Tty": False}
        with (
            self._refusals(),
            self._client.stream("POST", f"/exec/{command}/start", json=body, timeout=None) as answer,
        ):
            if answer.status_code >= 400:
                answer.read()
            self._checked(answer)
            pending = b""
            for data in answer.iter_raw():
                pending += data
                while len(pending) >= _FRAME and len(pending) >= (end := _FRAME + int.from_bytes(pending[4:8], "big")):
                    yield pending[0], pending[_FRAME:end]
                    pending = pending[end:]

    def command(self, command: str) -> dict[str, Any]:
        """Its pid on the host, and its exit code."""
        found: dict[str, Any] = self._ask("GET", f"/exec/{command}/json")
        return found

    # --- small print ---

    def _unless_gone(self, method: str, path: str, **request: Any) -> None:
        try:
            self._ask(method, path, **request)
        except EngineError as error:
            if error.status not in _GONE:
                raise

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        with self._refusals():
            answer = self._checked(self._client.request(method, path, **request))
        return answer.json() if answer.content and answer.headers.get("content-type", "").startswith(_JSON) else None

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code < 400:
            return answer
        try:
            message = str(answer.json()["message"])
        except (ValueError, KeyError, TypeError):
            message = answer.text[:500]
        raise EngineError(f"the container engine refuses: {message}", answer.status_code)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, RuntimeError) as error:  # the latter: closed meanwhile
            raise EngineError(
                f"no container engine answers at {self._socket}: {str(error) or type(error).__name__}"
                " (SQUALL_GPU_AGENT_DOCKER_SOCKET says where it is)"
            ) from error


_JSON = "application/json"
