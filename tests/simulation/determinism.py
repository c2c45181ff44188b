"""Makes a run depend on its seed alone: randomness, ids and clocks that the services ask the machine for."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from tests.simulation.actors import REPLACED

from squall import ids
from squall_contracts.envelope import HotMessage, Message
from squall_gpu_agent.held import Held
from squall_scheduler import service as scheduler_service

Known = dict[tuple[type[Message], bytes], Message]


def _remembering(base: type[Message], known: Known) -> list[tuple[Any, str, Any]]:
    """The same bytes are the same frozen message, from its encoding on: one who writes a claim and ten who read it."""
    encode, decode = base.__dict__["encode"], base.__dict__["decode"].__func__

    def told(message: Message) -> bytes:
        data: bytes = encode(message)
        known[type(message), data] = message
        return data

    def heard(cls: type[Message], data: bytes) -> Message:
        found = known.get((cls, data))
        if found is None:
            found = known[cls, data] = decode(cls, data)
        return found

    return [(base, "encode", told), (base, "decode", classmethod(heard))]


def _hash_of_held(held: Held) -> int:
    return hash((held.request.call, held.request.index, held.delivery.stream_seq, held.delivery.num_delivered))


@contextmanager
def deterministic(rng: random.Random, wall_ns: Any, *, thorough: bool) -> Iterator[None]:
    """While the block runs, `secrets` and the time in ids come from here. `thorough`: with what costs much and decides
    little, that is, real decoding of every message, and canaries, which are half of what idle services do."""
    replaced: list[tuple[Any, str, Any]] = [
        (secrets, "token_hex", lambda n=16: f"{rng.getrandbits(8 * n):0{2 * n}x}"),
        (secrets, "token_bytes", lambda n=16: rng.randbytes(n)),
        (secrets, "token_urlsafe", lambda n=16: f"{rng.getrandbits(8 * n):0{2 * n}x}"),
        (secrets, "randbits", rng.getrandbits),
        (secrets, "randbelow", rng.randrange),
        (ids, "time", SimpleNamespace(time_ns=wall_ns)),
        (ids, "os", SimpleNamespace(urandom=rng.randbytes)),
        *REPLACED,
    ]
    # Every task would be entered in a weak set when it starts; nobody here asks for all tasks.
    asyncio.tasks._all_tasks.add = lambda _: None  # type: ignore[attr-defined]
    if not thorough:
        known: Known = {}
        replaced += [*_remembering(Message, known), *_remembering(HotMessage, known)]
        replaced.append((scheduler_service, "FIRST_CANARY_S", 1e9))
    before = [(module, name, module.__dict__[name]) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    # Sets of objects are in the order of their addresses, which no seed decides.
    Held.__hash__ = _hash_of_held  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del asyncio.tasks._all_tasks.add  # type: ignore[attr-defined]
        for module, name, value in before:
            setattr(module, name, value)
        Held.__hash__ = object.__hash__  # type: ignore[method-assign]
