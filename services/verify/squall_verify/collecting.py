"""Collecting: everything that the platform says in the end, as evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random

from squall.client import Client
from squall.config import ServerAddress
from squall.errors import SquallError
from squall.http_api.routes import Route
from squall_bus import connect
from squall_contracts import topology
from squall_verify import reading, ticking, watching
from squall_verify.evidence import Evidence
from squall_verify.platform import Platform
from squall_verify.state import State

STATES = 40


async def laws(platform: Platform, seen_before: Mapping[str, str], paused_at: Mapping[str, float]) -> Evidence:
    """What the streams hold; the rest of the evidence is for others to add."""
    blobs = platform.data / "blobs"
    async with connect(platform.bus_settings(), topology.build()) as bus:
        accepted, recorded = await reading.accepted(bus), await reading.recorded(bus, blobs)
        named = {(each.workspace, each.blob) for each in accepted} | {(each.workspace, each.blob) for each in recorded}
        states = {(ref, reading.blob_state(blobs, workspace, ref)) for workspace, ref in named if ref}
        return Evidence(
            accepted=tuple(accepted),
            recorded=tuple(recorded),
            counted=tuple(await reading.counted(bus)),
            told=tuple(await reading.told(bus)),
            used=tuple(await reading.used(bus)),
            letters=tuple(await reading.letters(bus)),
            functions=await reading.functions(bus),
            blobs=dict(sorted(states, key=lambda found: found[1] != "ok")),  # the last stays: what is wrong
            vanished=tuple(await watching.vanished(bus, seen_before)),
            state=State(schedules=await ticking.schedules(bus, paused_at)),
        )


def states(address: ServerAddress, calls: Sequence[str], dice: Random) -> dict[str, str]:
    """What the API says about some calls."""
    client = Client(address, patient=True)
    found = {}
    for call in dice.sample(calls, min(STATES, len(calls))):
        with suppress(SquallError):
            found[call] = str(client.json("GET", Route.CALL.format(call=call))["state"])
    client.close()
    return found
