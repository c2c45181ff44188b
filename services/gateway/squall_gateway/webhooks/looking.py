"""Looking at webhooks: what waits, what was delivered, what was given up; and trying the last again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

from squall.errors import ConflictError, NotFoundError
from squall.http_api.webhooks import WebhookInfo
from squall_bus import Bus, WrongRevision
from squall_contracts import subjects
from squall_contracts.webhooks import (
    DEAD,
    KEPT_S,
    PENDING,
    WEBHOOKS,
    WebhookDelivery,
    WebhookLetter,
    deliveries_of,
    delivery_key,
    letter_key,
    letters_of,
)


class _Dead(NamedTuple):
    record: WebhookDelivery
    revision: int
    letter_revision: int


@dataclass(frozen=True, slots=True)
class Webhooks:
    """The bucket, for people."""

    bus: Bus

    async def newest(self, workspace: str, state: str, limit: int) -> list[WebhookInfo]:
        """The newest ones in a state (empty: in any)."""
        if state == DEAD:
            return [info_of(dead.record) for dead in (await self._dead(workspace))[:limit]]
        newest: deque[WebhookDelivery] = deque(maxlen=limit)
        stream = subjects.kv_stream(WEBHOOKS)
        async for stored in self.bus.read(stream, subjects.kv_subject(WEBHOOKS, deliveries_of(workspace) + ">")):
            if not stored.data:
                continue  # removed
            record = WebhookDelivery.decode(stored.data)
            if state in ("", record.state):
                newest.append(record)
        return [info_of(record) for record in reversed(newest)]

    async def of_call(self, call: str, workspace: str) -> list[WebhookInfo]:
        """Those of one call. Raises `NotFoundError`."""
        entries = await self.bus.kv(WEBHOOKS).entries(deliveries_of(workspace, call))
        if not entries:
            raise NotFoundError(
                f"there are no webhooks of call {call}",
                fix="It has none, has not ended, or was delivered more than a day ago.",
            )
        records = [WebhookDelivery.decode(entry.value) for entry in entries]
        return [info_of(record) for record in sorted(records, key=lambda each: each.index)]

    async def redrive(self, call: str, workspace: str, limit: int) -> list[WebhookInfo]:
        """Try dead ones again, of one call or of all. Raises `ConflictError` if a call has none."""
        chosen = [dead for dead in await self._dead(workspace) if call in ("", dead.record.call)]
        if call and not chosen:
            raise ConflictError(f"{call} has no dead webhook", fix="`squall webhook list --dead` shows those that are.")
        again = [await self._again(dead) for dead in chosen[:limit]]
        return [info_of(record) for record in again if record is not None]

    async def _again(self, dead: _Dead) -> WebhookDelivery | None:
        record, bucket = dead.record, self.bus.kv(WEBHOOKS)
        fresh = replace(record, state=PENDING, tries=0, next_at=0.0)
        key = delivery_key(record.workspace, record.call, record.index)
        try:
            await bucket.update(key, fresh.encode(), dead.revision, ttl_s=KEPT_S[PENDING])
        except WrongRevision:
            return None  # somebody else redrove it
        try:
            letter = letter_key(record.workspace, record.call, record.index)
            await bucket.delete(letter, revision=dead.letter_revision)
        except WrongRevision:
            pass  # it is dead again already
        return fresh

    async def _dead(self, workspace: str) -> list[_Dead]:
        """Dead deliveries, newest first. A letter whose delivery is not dead does not count: its
        gateway died between the two writes, or it was redriven."""
        letters: dict[str, int] = {}
        for entry in reversed(await self.bus.kv(WEBHOOKS).entries(letters_of(workspace))):
            letter = WebhookLetter.decode(entry.value)
            key = delivery_key(letter.workspace, letter.call, letter.index)
            letters[subjects.kv_subject(WEBHOOKS, key)] = entry.revision
        found = await self.bus.get_many(subjects.kv_stream(WEBHOOKS), list(letters))
        records = [
            _Dead(WebhookDelivery.decode(found[each].data), found[each].seq, revision)
            for each, revision in letters.items()
            if each in found and found[each].data
        ]
        return [dead for dead in records if dead.record.state == DEAD]


def info_of(record: WebhookDelivery) -> WebhookInfo:
    """What is told about a delivery."""
    return WebhookInfo(
        call=record.call,
        index=record.index,
        url=record.url,
        event=record.event,
        app=record.app,
        function=record.function,
        state=record.state,
        tries=record.tries,
        created_at=record.created_at,
        next_at=record.next_at,
        recent=tuple({"at": at, "took_s": took_s, "what": what} for at, took_s, what in record.recent),
    )
