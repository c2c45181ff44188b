"""A gateway that runs functions in its own process: speaks the HTTP API, keeps everything in memory, forgets it all.

What the SDK's tests need of a server and no more; what the real one does is tested with the real one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from squall.app import App
from squall.cls import Cls
from squall.config import ServerAddress
from squall.errors import SquallError, to_wire
from squall.http_api.protocol import FrameKind, Header, decode_parameters, encode_parameters, frames, parse_blob_ref

TOKEN = "secret-token"
NO_PARAMETERS = encode_parameters({})


class Raised(NamedTuple):
    """How a generator ended."""

    error: Exception


def _items_of(items: Iterator[Any]) -> Iterator[Any]:
    """The items, and what the generator raised after them."""
    try:
        yield from items
    except Exception as error:  # noqa: BLE001 - whatever the function raises is its outcome
        yield Raised(error)


def _failed(error: Exception) -> dict[str, Any]:
    kind = {"kind": "user", "type": type(error).__name__, "module": type(error).__module__, "message": str(error)}
    return {"outcome": "failed", "error": {**kind, "traceback": "".join(traceback.format_exception(error))}}


class FakeGateway:
    """State, and what tests turn to make trouble."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}
        """What runs, by name; for `Class.method`, what makes it from the class parameters."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.blobs: dict[str, bytes] = {}
        self.embed: Callable[[bytes], bytes] = lambda _: b""
        """What of a blob comes in the answer itself."""
        self.apps: list[dict[str, Any]] = []
        self.calls: dict[str, dict[int, tuple[dict[str, Any], bytes]]] = {}
        self.kept_values: list[dict[str, str]] = []
        """Of secrets that have no name."""
        self.spans: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.build_log: list[str] = []
        self.build_error: SquallError | None = None
        self.logs: list[dict[str, Any]] = []
        self.break_next: list[str] = []
        """Routes ("POST /v1/calls") whose next answer is replaced by a broken connection, after the work was done."""
        self.errors: dict[str, list[SquallError]] = {}
        """Error answers by route, used up one by one."""
        self.outcomes: dict[str, dict[str, Any]] = {}
        """How calls of a function end, instead of running it: fields of the result's metadata."""
        self.not_yet: dict[str, int] = {}
        """How many times a function's calls are answered with "not yet"."""
        self.input_errors: list[SquallError] = []
        """Refusals of the next chunks of any map."""
        self.chunks: list[list[int]] = []
        self.spawned_together: list[list[str]] = []
        """Calls of each request that brought several."""
        self.keyed: dict[str, str] = {}
        """Calls by idempotency key."""
        self.waiting: dict[str, tuple[str, Any, bytes]] = {}
        self.results_per_stream = 1 << 30
        self.items_per_stream = 1 << 30
        self.repeats_results = False
        self.restarts_after: int | None = None
        """A generator begins anew after so many items."""
        self.changed = threading.Condition()
        self.open = threading.Event()
        """While it is not set, requests that make calls wait for their answer."""
        self.open.set()
        self.open_together = threading.Event()
        """The same for requests for several operations on dicts and queues."""
        self.open_together.set()
        self.trace_ratio = 1.0
        self.volume_files: dict[str, dict[str, Any]] = {}
        """Of the one volume that there is."""
        self.volume_version = 0
        self.webhooks = True
        self.entries: dict[str, bytes] = {}
        """Of the one dict that there is, by encoded key."""
        self.entries_together: list[list[dict[str, Any]]] = []
        """What each request for several operations has brought."""
        self.entries_alone: list[dict[str, Any]] = []
        self.entry_answers: dict[str, dict[str, Any]] = {}
        """By kind of operation: what is answered to it among others, instead of doing it."""
        self.takes_entries_together = True

    def serve(self, app: App) -> None:
        """Run what an app declares."""
        for name, function in app.registered_functions.items():
            self.functions[name] = function.get_raw_f()
        for name, cls in app.registered_classes.items():
            for method in cls.method_specs():
                self.functions[f"{name}.{method.name}"] = functools.partial(_bound, cls, method.name)

    def paths(self, method: str) -> list[str]:
        """Paths of the requests so far."""
        return [path for m, path, _ in self.requests if m == method]

    def headers_of(self, route: str) -> list[dict[str, str]]:
        """Headers of the requests of a route ("POST /v1/calls")."""
        return [headers for method, path, headers in self.requests if f"{method} {path.partition('?')[0]}" == route]

    def headers_of_inputs(self) -> list[dict[str, str]]:
        """Headers of every chunk of a map."""
        return [headers for _, path, headers in self.requests if path.endswith("/inputs")]

    def callee(self, name: str, headers: Any) -> Callable[..., Any]:
        function = self.functions[name]
        return function(decode_parameters(headers.get(Header.PARAMETERS) or NO_PARAMETERS)) if "." in name else function

    def run(self, name: str, headers: Any, payload: bytes, call: str, index: int) -> tuple[dict[str, Any], bytes]:
        meta: dict[str, Any] = {"call": call, "index": index, "outcome": "succeeded", "encoding": "pickle"}
        if name in self.outcomes:
            return {**meta, **self.outcomes[name]}, b""
        try:
            args, kwargs = pickle.loads(payload)
            value = pickle.dumps(self.callee(name, headers)(*args, **kwargs), 4)
        except Exception as error:  # noqa: BLE001 - whatever the function raises is its outcome
            meta |= _failed(error)
            value = pickle.dumps(error, 4)
        if len(value) > 64 * 1024:
            sha256 = hashlib.sha256(value).hexdigest()
            self.blobs[sha256] = value
            return {**meta, "blob": f"{sha256}:{len(value)}"}, self.embed(value)
        return meta, value


def _bound(cls: Cls, method: str, parameters: dict[str, Any]) -> Callable[..., Any]:
    local: Callable[..., Any] = getattr(cls(**parameters), method).local
    return local


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    gateway: FakeGateway

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        gateway, parts = self.gateway, urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        gateway.requests.append((self.command, self.path, dict(self.headers.items())))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        route = f"{self.command} {parts.path}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401, "auth", "this token is not known")
        if gateway.errors.get(route):
            error = gateway.errors[route].pop(0)
            return self._json(error.http_status, {"error": to_wire(error)})
        _, _, kind, *rest = parts.path.split("/")
        getattr(self, f"_{kind.replace('-', '_')}")(rest)
        if route in gateway.break_next:
            gateway.break_next.remove(route)
        return None

    def _breaking(self) -> bool:
        if f"{self.command} {urlsplit(self.path).path}" in self.gateway.break_next:
            self.close_connection = True
            return True
        return False

    def _bytes(self, status: int, body: bytes) -> None:
        if self._breaking():
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, status: int, body: Any) -> None:
        self._bytes(status, json.dumps(body).encode())

    def _error(self, status: int, code: str, message: str) -> None:
        self._json(status, {"error": {"code": code, "message": message}})

    def _chunks(self, chunks: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            if self._breaking():
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _info(self, _rest: list[str]) -> None:
        names = ("version", "api_version", "region", "shards", "workspace", "environment")
        told = dict(zip(names, ("0", 1, "local", 4, "main", "main"), strict=True))
        features = {"blobs_with_calls": True, "spawns_together": True, "trace_ratio": self.gateway.trace_ratio}
        features["webhooks"] = self.gateway.webhooks
        features["entries_together"] = self.gateway.takes_entries_together
        self._json(200, {**told, **features})

    def _apps(self, rest: list[str]) -> None:
        if not rest:
            app = json.loads(self.body)
            self.gateway.apps.append(app)
            functions = {f["name"]: f"fu-{f['name']}" for f in app["functions"]}
            return self._json(200, {"app_id": "ap-1", "name": app["name"], "version": 1, "functions": functions})
        if rest[1] == "logs":
            return self._chunks(json.dumps(line).encode() + b"\n" for line in self.gateway.logs)
        return self._json(200, {"app_id": "ap-1", "name": "x", "state": rest[1]})

    def _functions(self, _rest: list[str]) -> None:
        if (name := self.query["name"]) not in self.gateway.functions:
            return self._error(404, "not_found", f"no function {name}")
        known = {"app_id": "ap-9", "app_name": self.query["app"], "function_id": "fu-9", "name": name, "version": 3}
        methods = [
            {"name": other.partition(".")[2]} for other in self.gateway.functions if other.startswith(f"{name}.")
        ]
        if not methods:
            return self._json(200, {**known, "methods": [{"name": ""}]})
        size = {"name": "size", "type": "int", "has_default": True, "default": 1}
        key = {"name": "key", "type": "bytes", "has_default": True, "default": {"b64": "aw=="}}
        return self._json(200, {**known, "is_class": True, "methods": methods, "parameters": [size, key]})

    def _images(self, _rest: list[str]) -> None:
        lines = [{"at": 0.0, "stream": "stdout", "text": text} for text in self.gateway.build_log]
        error = self.gateway.build_error
        last = {"error": to_wire(error)} if error else {"image": "im-1"}
        self._chunks(json.dumps(line).encode() + b"\n" for line in [*lines, last])

    def _secret_values(self, _rest: list[str]) -> None:
        self.gateway.kept_values.append(json.loads(self.body)["values"])
        self._json(200, {"id": f"st-{len(self.gateway.kept_values)}"})

    def _blobs(self, rest: list[str]) -> None:
        blobs, name = self.gateway.blobs, rest[0]
        if self.command == "PUT":
            assert hashlib.sha256(self.body).hexdigest() == name
            blobs[name] = self.body
            return self._bytes(201, b"")
        return self._bytes(200, blobs[name]) if name in blobs else self._error(404, "not_found", "no such blob")

    def _volume_blocks(self, rest: list[str]) -> None:
        self._blobs(rest)

    def _volumes(self, rest: list[str]) -> None:
        gateway = self.gateway
        if rest[1] == "commits":
            wanted = json.loads(self.body)
            if wanted["expect"] not in (None, gateway.volume_version):
                return self._error(409, "conflict", f"the volume is at version {gateway.volume_version}")
            for change in wanted["changes"]:
                if change["what"] == "write":
                    gateway.volume_files[change["path"]] = change["file"]
                else:
                    gateway.volume_files.pop(change["path"], None)
            gateway.volume_version += 1
        body = json.dumps({"files": list(gateway.volume_files.values())}).encode()
        sha256 = hashlib.sha256(body).hexdigest()
        gateway.blobs[sha256] = body
        return self._json(200, {"version": gateway.volume_version, "manifest": f"{sha256}:{len(body)}"})

    def _spans(self, _rest: list[str]) -> None:
        self.gateway.spans += json.loads(self.body)["batches"]
        self._json(202, {})

    # --- calls ---

    def _name(self) -> str:
        function, method = self.headers[Header.FUNCTION].split("/")[1], self.headers.get(Header.METHOD)
        return f"{function}.{method}" if method else function

    def _payload(self, blob: str | None, inline: bytes) -> bytes:
        if not blob:
            return inline
        if inline:
            self.gateway.blobs[hashlib.sha256(inline).hexdigest()] = inline
        return self.gateway.blobs[parse_blob_ref(blob)[0]]

    def _record(self, call: str, index: int, payload: bytes) -> None:
        results = self.gateway.calls.setdefault(call, {})
        if index not in results:  # the first write wins
            results[index] = self.gateway.run(self._name(), self.headers, payload, call, index)

    def _calls(self, rest: list[str]) -> None:
        gateway = self.gateway
        if not rest:
            return self._new_call()
        call, what = rest
        if what == "cancel":
            gateway.cancelled.append(call)
            return self._json(200, {"cancelled": 1})
        if what == "inputs":
            if gateway.input_errors:
                error = gateway.input_errors.pop(0)
                return self._json(error.http_status, {"error": to_wire(error)})
            inputs = [each for frame in frames.Decoder().feed(self.body) for each in _single(frame)]
            gateway.chunks.append([frame.meta["index"] for frame in inputs])
            for frame in inputs:
                self._record(call, frame.meta["index"], self._payload(frame.meta.get("blob"), frame.payload))
            with gateway.changed:
                gateway.changed.notify_all()
            if "inputs" in gateway.break_next:
                gateway.break_next.remove("inputs")
                self.close_connection = True
                return None
            return self._json(200, {"accepted": len(inputs)})
        if what == "results":
            return self._chunks(self._results(call, int(self.query["cursor"])))
        return self._result_or_not_yet(call, int(self.query["index"]))

    def _result_or_not_yet(self, call: str, index: int) -> None:
        gateway = self.gateway
        name, headers, payload = gateway.waiting.get(call, ("", None, b""))
        if gateway.not_yet.get(name, 0) > 0:
            gateway.not_yet[name] -= 1
            return self._json(202, {"call": call, "waiting": "no node is free"})
        if name and index not in gateway.calls.setdefault(call, {}):
            gateway.calls[call][index] = gateway.run(name, headers, payload, call, index)
        if index not in gateway.calls.get(call, {}):
            return self._error(404, "not_found", f"no call {call}")
        return self._bytes(200, frames.encode(FrameKind.RESULT, *gateway.calls[call][index]))

    def _spawns(self, _rest: list[str]) -> None:
        [frame] = frames.Decoder().feed(self.body)
        start = 0
        for (call, _, _), size in zip(frame.meta["calls"], frame.meta["sizes"], strict=True):
            self.gateway.waiting[call] = (self._name(), self.headers, frame.payload[start : start + size])
            start += size
        self.gateway.spawned_together.append([call for call, _, _ in frame.meta["calls"]])
        self._json(200, {"accepted": len(frame.meta["calls"])})

    def _dicts(self, rest: list[str]) -> None:
        assert rest[1] == "ops"
        found = frames.Decoder().feed(self.body)
        self.gateway.entries_alone += [frame.meta for frame in found]
        self.gateway.open.wait(30)
        self._bytes(200, b"".join(self._entry(frame) for frame in found))

    def _entries(self, _rest: list[str]) -> None:
        found = frames.Decoder().feed(self.body)
        self.gateway.entries_together.append([frame.meta for frame in found])
        self.gateway.open_together.wait(30)
        told = self.gateway.entry_answers
        answers = [
            frames.encode(FrameKind.ENTRY, told[frame.meta["op"]]) if frame.meta["op"] in told else self._entry(frame)
            for frame in found
        ]
        self._bytes(200, b"".join(answers))

    def _entry(self, frame: frames.Frame) -> bytes:
        entries, key = self.gateway.entries, frame.meta["key"]
        if frame.meta["op"] == "put":
            entries[key] = bytes(frame.payload)
            return frames.encode(FrameKind.ENTRY, {"put": True})
        value = entries.pop(key, None) if frame.meta["op"] == "pop" else entries.get(key)
        return frames.encode(FrameKind.ENTRY, {"found": value is not None}, value or b"")

    def _new_call(self) -> None:
        self.gateway.open.wait(30)
        call, payload = self.headers[Header.CALL], self._payload(self.headers.get(Header.BLOB), self.body)
        if key := self.headers.get(Header.IDEMPOTENCY_KEY):
            call = self.gateway.keyed.setdefault(key, call)
        if self.headers[Header.KIND] == "generator":
            return self._chunks(self._items(call, *pickle.loads(payload)))
        self.gateway.waiting[call] = (self._name(), self.headers, payload)
        if self.query["wait"] == "0":
            return self._json(202, {"call": call})
        return self._result_or_not_yet(call, 0)

    def _items(self, call: str, args: Any, kwargs: Any) -> Iterator[bytes]:
        gateway, found = self.gateway, _items_of(self.gateway.callee(self._name(), self.headers)(*args, **kwargs))
        for seq, item in enumerate(found):
            if isinstance(item, Raised):
                meta = {"call": call, "index": 0, "encoding": "pickle", **_failed(item.error)}
                yield frames.encode(FrameKind.RESULT, meta, pickle.dumps(item.error, 4))
                return
            if seq == gateway.items_per_stream:
                gateway.break_next.append("POST /v1/calls")
            if seq == gateway.restarts_after:
                yield frames.encode(FrameKind.RESTARTED, {"attempt": "2"})
            yield frames.encode(FrameKind.ITEM, {"attempt": "1", "seq": seq, "encoding": "pickle"}, pickle.dumps(item))
        yield frames.encode(FrameKind.RESULT, {"call": call, "index": 0, "outcome": "succeeded"})

    def _results(self, call: str, cursor: int) -> Iterator[bytes]:
        sent = 0
        while call not in self.gateway.cancelled and sent < self.gateway.results_per_stream:
            results = self.gateway.calls[call]
            # In the order in which they were recorded.
            if self.gateway.repeats_results and sent == 0:
                cursor = max(0, cursor - 5)
            ready = list(results)[cursor:]
            for index in ready[: self.gateway.results_per_stream - sent]:
                cursor, sent = cursor + 1, sent + 1
                meta, value = results[index]
                yield frames.encode(FrameKind.RESULT, {**meta, "cursor": cursor}, value)
            if not ready:
                with self.gateway.changed:
                    self.gateway.changed.wait(0.05)
                yield frames.encode(FrameKind.KEEPALIVE, {})


def _single(frame: frames.Frame) -> list[frames.Frame]:
    """The inputs of an INPUTS frame as INPUT frames."""
    if frame.kind != FrameKind.INPUTS:
        return [frame]
    made, start = [], 0
    for place, size in enumerate(frame.meta["sizes"]):
        meta = {"index": frame.meta["first"] + place, "blob": frame.meta.get("blobs", {}).get(str(place))}
        made.append(frames.Frame(FrameKind.INPUT, meta, frame.payload[start : start + size]))
        start += size
    return made


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def serving(gateway: FakeGateway, port: int = 0) -> Iterator[ServerAddress]:
    """The gateway on a port of this machine."""
    handler = type("Handler", (_Handler,), {"gateway": gateway})
    server = _Server(("127.0.0.1", port), handler)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield ServerAddress(f"http://127.0.0.1:{server.server_address[1]}", TOKEN)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
