"""What a caller does with dicts, queues, volumes and web functions: requests with values of which each is there once.

Which request comes when is drawn from the operation's own dice. Nothing is judged here.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import queue
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any
from urllib.parse import urlsplit

import squall
from squall import session
from squall_verify.state import CONFLICT, CUT, REFUSED
from squall_verify.stepping import StepLog, Told

Job = Mapping[str, Any]
NAME = "verify"
REGISTERS, CLAIMS, TOKENS = 3, 3, 3
"""Keys that are put and got; that one may claim; that are put by whoever finds them gone, and popped."""
PARTITIONS = ("a", "b")
PATIENCE_S = 0.3
GROUPS = 2
FILES = ("one", "two", "three")
"""Of a group: written together, always with the same content."""
FILE_BYTES = (200, 60_000)
WEB = "page"
WEB_S = 60.0
AGAIN_S = 0.3
FILLING_BYTES = 20_000
READ_OWN = 40
"""Files of single commits whose content is looked at in the end."""
BROKEN = (502, 503, 504)


class Stateful:
    """One caller's requests."""

    def __init__(self, log: StepLog, workspace: str, name: str = NAME) -> None:
        self._log = log
        self._workspace = workspace
        self._name = name
        """Of the dict, the queue and the volume."""

    # ------------------------------------------------------------------ dicts

    def dict_steps(self, op: str, job: Job) -> None:
        """Puts, gets, claims, offers and pops of few keys."""
        dice, state = Random(job["dice"]), squall.Dict.from_name(self._name, create_if_missing=True)
        for number in range(job["n"]):
            value = f"{op}.{number}"
            first = number == 0 and job.get("claims", False)
            what = "claim" if first else dice.choices(("put", "get", "claim", "offer", "pop"), (2, 3, 2, 3, 3))[0]
            if what in ("put", "get"):
                self._register(state, op, what, f"r{dice.randrange(REGISTERS)}", value)
            elif what == "claim":
                key = f"c{job['group']}-{0 if first else dice.randrange(CLAIMS)}"
                with self._log.step(op, "dict", "claim", key, value) as told:
                    told.got = [str(state.put(key, value, skip_if_exists=True))]
            else:
                self._token(state, op, what, f"t{dice.randrange(TOKENS)}", value)

    def _register(self, state: squall.Dict, op: str, what: str, key: str, value: str) -> None:
        if what == "put":
            with self._log.step(op, "dict", "put", key, value):
                state.put(key, value)
        else:
            with self._log.step(op, "dict", "get", key) as told:
                told.got = [state.get(key, "")]

    def _token(self, state: squall.Dict, op: str, what: str, key: str, value: str) -> None:
        if what == "offer":
            with self._log.step(op, "dict", "offer", key, value) as told:
                told.got = [str(state.put(key, value, skip_if_exists=True))]
        else:
            with self._log.step(op, "dict", "pop", key) as told:
                told.got = [state.pop(key, "")]

    # ------------------------------------------------------------------ queues

    def queue_steps(self, op: str, job: Job) -> None:
        """Puts of one to three items, and gets of as many."""
        dice, items = Random(job["dice"]), squall.Queue.from_name(self._name, create_if_missing=True)
        for number in range(job["n"]):
            partition, count = dice.choice(PARTITIONS), dice.choice((1, 1, 3))
            if dice.random() < 0.5:
                values = [f"{op}.{number}.{each}" for each in range(count)]
                with self._log.step(op, "queue", "put", partition, *values):
                    items.put_many(values, partition=partition)
            else:
                waits = dice.random() < 0.5
                with self._log.step(op, "queue", "get", partition, str(count)) as told:
                    told.got = self._take(items, partition, count, waits)

    def _take(self, items: squall.Queue, partition: str, count: int, waits: bool) -> list[str]:
        try:
            if waits:
                return list(items.get_many(count, timeout=PATIENCE_S, partition=partition))
            return list(items.get_many(count, block=False, partition=partition))
        except queue.Empty:
            return []

    # ------------------------------------------------------------------ volumes

    def volume_steps(self, op: str, job: Job) -> None:
        """A group of files and one file of its own in one commit; looks at groups, and at contents."""
        dice, volume = Random(job["dice"]), squall.Volume.from_name(self._name, create_if_missing=True)
        for number in range(job["n"]):
            group = f"g{dice.randrange(GROUPS)}"
            match dice.choices(("commit", "expect", "look", "read"), (3, 1, 2, 2))[0]:
                case "look":
                    with self._log.step(op, "volume", "look", group) as told:
                        _look(volume, group, told)
                case "read":
                    path = f"{group}/{dice.choice(FILES)}"
                    with self._log.step(op, "volume", "read", path) as told:
                        told.got = [_content(volume, path)]
                case what:
                    self._commit(volume, op, what, group, f"{op}.{number}", dice.randint(*FILE_BYTES))

    def _commit(self, volume: squall.Volume, op: str, what: str, group: str, value: str, size: int) -> None:
        expected = None
        if what == "expect":
            with self._log.step(op, "volume", "version", group) as told:
                expected = told.version = volume.current_version()
            if expected is None:
                return
        data = content_of(value, size)
        wanted = (value, str(size), "" if expected is None else str(expected))
        with self._log.step(op, "volume", "commit", group, *wanted) as told:
            with volume.batch_upload(force=True, expect=expected) as batch:
                for name in FILES:
                    batch.put_file(io.BytesIO(data), f"{group}/{name}")
                batch.put_file(io.BytesIO(data), f"own/{value}")
            told.version = batch.version or 0

    # ------------------------------------------------------------------ web

    def web_steps(self, op: str, job: Job) -> None:
        """Requests over one connection as long as it lasts."""
        dice = Random(job["dice"])
        address = urlsplit(session.current().client.address.url)
        path = f"/web/{self._workspace}--{NAME}-{WEB}"
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=WEB_S)
        for number in range(job["n"]):
            nonce, method = f"{op}.{number}", dice.choice(("GET", "POST", "POST"))
            body = nonce.encode() + b"\n" + bytes(dice.choice((0, FILLING_BYTES))) if method == "POST" else b""
            with self._log.step(op, "web", method, "", nonce) as told:
                try:
                    _ask(connection, method, f"{path}/{nonce}?hold={dice.choice((0, 0, 0.05))}", body, told)
                except (OSError, http.client.HTTPException):
                    told.outcome = CUT
                    connection.close()
                    time.sleep(AGAIN_S)  # its gateway is being started again
                    raise

    # ------------------------------------------------------------------ in the end

    def look_at_everything(self, op: str, _: Job) -> None:
        """What is there when everybody has ended."""
        with self._log.step(op, "dict", "final") as told:
            state = squall.Dict.from_name(self._name, create_if_missing=True)
            told.got = [f"{key}={value}" for key, value in state.items()]
        items = squall.Queue.from_name(self._name, create_if_missing=True)
        for partition in PARTITIONS:
            with self._log.step(op, "queue", "final", partition) as told:
                while found := items.get_many(500, block=False, partition=partition):
                    told.got += found
        with self._log.step(op, "volume", "final") as told:
            volume = squall.Volume.from_name(self._name, create_if_missing=True)
            told.version = volume.current_version()
            own = 0
            for entry in volume.listdir("/", recursive=True) if told.version else ():
                own += entry.path.startswith("own/")
                if entry.type == "file":
                    looked = own <= READ_OWN or not entry.path.startswith("own/")
                    told.got.append(f"{entry.path}={_content(volume, entry.path) if looked else ''}")


def content_of(value: str, size: int) -> bytes:
    """A content that says all over whose it is."""
    line = value.encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


def _content(volume: squall.Volume, path: str) -> str:
    """Whose content a file has; nothing without a file, `mixed` when it is nobody's alone."""
    try:
        data = b"".join(volume.read_file(path))
    except FileNotFoundError:
        return ""
    value = data.partition(b"\n")[0].decode("utf-8", "replace")
    return value if data == content_of(value, len(data)) else f"mixed: {data[:60]!r}"


def _look(volume: squall.Volume, group: str, told: Told) -> None:
    """Which version, and the sizes of the group's files in it: they are written together, all of one size."""
    listing = volume._listing("/", True)
    told.version = int(listing["version"]["version"])
    told.got = [f"{each['path']}={each['size']}" for each in listing["entries"] if each["path"].startswith(f"{group}/")]


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes, told: Told) -> None:
    connection.request(method, path, body or None)
    answer = connection.getresponse()
    data = answer.read()
    told.detail = str(answer.status)
    if answer.status in BROKEN or answer.status == 429:
        told.outcome = REFUSED if answer.status in (429, 503) else CONFLICT if answer.status == 504 else CUT
        told.got = [answer.headers.get("Retry-After", "")]
        return
    if answer.status != 200:
        raise AssertionError(f"{answer.status}: {data[:200]!r}")
    found = json.loads(data)
    told.got = [found["nonce"], found["method"]]
    if found["digest"] != hashlib.sha256(body).hexdigest():
        raise AssertionError(f"the function was given {found['bytes']} bytes, other ones than these {len(body)}")


def forms(stateful: Stateful) -> Mapping[str, Any]:
    """By the name that a plan has for it."""
    return {
        "dict": stateful.dict_steps,
        "queue": stateful.queue_steps,
        "volume": stateful.volume_steps,
        "web": stateful.web_steps,
        "final": stateful.look_at_everything,
    }


STATE_FORMS: Sequence[str] = ("dict", "queue", "volume", "web")
