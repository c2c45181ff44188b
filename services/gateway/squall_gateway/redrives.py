"""Redriving: a dead letter becomes a new call of the app's present version. Owns the links between the two.

The link is written first and only once, with the id of the new call: whoever redrives the same letter again, also at
the same time on another gateway, makes the same call. The old call's records never change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from squall import errors
from squall.errors import ConflictError, InputExpiredError, InvalidError, NotFoundError, SquallError
from squall.http_api.calls import RedrivenInput, Redrives, RefusedRedrive
from squall.http_api.protocol import parse_blob_ref
from squall.ids import new_call_id
from squall.spec import Kind
from squall_bus import Bus, SubjectTaken
from squall_contracts import subjects
from squall_contracts.calls import CallRequested
from squall_contracts.letters import DeadLetter, Redriven
from squall_contracts.retention import HOUR_S
from squall_gateway.accept import Acceptor, Input
from squall_gateway.answers import public
from squall_gateway.call_headers import CallHeaders
from squall_gateway.call_spans import now_ns
from squall_gateway.letters import Letter, Letters, position
from squall_gateway.results import Results
from squall_gateway.targets import Targets
from squall_service.clock import Clock
from squall_service.telemetry import log

AT_ONCE = 64
KEPT_S = 30 * 24 * HOUR_S
"""Longer than letters and results are kept: as long as there is a letter, its redrive is known."""


@dataclass(frozen=True, slots=True)
class Redriving:
    """Makes calls of dead letters."""

    bus: Bus
    letters: Letters
    acceptor: Acceptor
    targets: Targets
    results: Results
    clock: Clock

    async def call(self, call: str, workspace: str) -> Redrives:
        """Every failed input of a call. Raises the refusal if there is only one input, and what a call is not."""
        found = await self.letters.that_count(await self.letters.subjects(workspace, call=call), workspace)
        if not found:
            raise await self._no_letter(call, workspace)
        done = await self._all(found, workspace)
        if done.refused and not done.redriven and len(done.refused) == 1:
            raise errors.from_wire(dict(done.refused[0].error))
        return done

    async def page(self, workspace: str, app: str, since: float, limit: int, cursor: str) -> Redrives:
        """The next dead letters that were not redriven yet, oldest first."""
        there = await self.letters.subjects(workspace, app or "*", since=since)
        rest = [each for each in there if position_text(position(each)) > cursor]
        some = rest[:limit]
        found = await self.letters.that_count(some, workspace)
        done = await self._all(found, workspace, skip_redriven=True)
        end = position_text(position(some[-1])) if len(rest) > len(some) else ""
        return Redrives(done.redriven, done.refused, end)

    async def _no_letter(self, call: str, workspace: str) -> SquallError:
        """Why a call has nothing to redrive."""
        first = await self.results.first_record(call, workspace)
        ended = await self.results.count(call, workspace)
        if first is None and not ended:
            return self.results.missing(call, 0)
        if first is not None and first.kind != Kind.SPAWN.value:
            why = f"it was made with {first.kind}: its caller heard of its end"
        else:
            why = "none of its inputs failed, timed out or expired"
        return ConflictError(
            f"{call} has no dead letter: {why}",
            fix="`squall call list --failed` shows what can be redriven.",
        )

    # ------------------------------------------------------------------ letters

    async def _all(self, found: Sequence[Letter], workspace: str, *, skip_redriven: bool = False) -> Redrives:
        letters = await self.letters.read(letter.subject for letter in found)
        links = await self.letters.redriven([letter.key for letter in found], workspace)
        slots = asyncio.Semaphore(AT_ONCE)

        async def redrive(letter: DeadLetter) -> RedrivenInput | RefusedRedrive | None:
            async with slots:
                known = links.get((letter.call, letter.index), "")
                there = bool(known) and await self.results.exists(known, workspace)
                if there and skip_redriven:
                    return None
                try:
                    into = known if there else await self._redrive(letter, known)
                except SquallError as error:
                    return RefusedRedrive(letter.call, letter.index, errors.to_wire(public(error)))
            return RedrivenInput(letter.call, letter.index, into)

        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(redrive(letters[each.key])) for each in found if each.key in letters]
        done = [task.result() for task in work]
        return Redrives(
            tuple(each for each in done if isinstance(each, RedrivenInput)),
            tuple(each for each in done if isinstance(each, RefusedRedrive)),
        )

    async def _redrive(self, letter: DeadLetter, known: str) -> str:
        """The new call. `known`: a link that was written before, by somebody who did not come to make the call."""
        asked = await self._input_of(letter)
        call = await self._headers(asked, known or new_call_id(self.bus.topology.shards))
        target = await self.targets.of(call, letter.workspace)
        given = Input(0, asked.payload, asked.blob, f"{letter.call}.{letter.index}")
        await self.acceptor.admit(call, target, [given])
        into = known or await self._link(letter, call.call)
        if into != call.call and await self.results.exists(into, letter.workspace):
            return into
        await self._link_back(letter, into)
        await self.acceptor.accept(
            call._replace(call=into), target, given, reply_to=None, received_ns=now_ns(self.clock)
        )
        log.info("call_redriven", call=letter.call, index=letter.index, into=into)
        return into

    async def _input_of(self, letter: DeadLetter) -> CallRequested:
        """What was accepted then. Raises `InputExpiredError`, `ServiceError`."""
        if not letter.request:
            raise InputExpiredError(
                f"the input of {letter.call} could not be read when it ended", fix="Make the call again."
            )
        asked = CallRequested.decode(letter.request)
        if asked.blob is not None:
            try:
                await self.acceptor.blobs.recorded(letter.workspace, [asked.blob])
                await self.acceptor.blobs.of(letter.workspace).require(*parse_blob_ref(asked.blob))
            except InvalidError as error:  # not what says that the store is away: it comes back
                raise InputExpiredError(f"the input of {letter.call} is no longer in the blob store") from error
        return asked

    async def _headers(self, asked: CallRequested, call: str) -> CallHeaders:
        """As its caller would make it now: the app's present version decides."""
        name, version = await self.letters.function_of(asked.function, asked.workspace)
        if not version:
            raise NotFoundError(f"function {asked.function} of {asked.call} is no longer known")
        return CallHeaders(
            call=call,
            app=asked.app,
            function=name,
            function_id="",
            method=asked.method,
            parameters=asked.parameters,
            kind=Kind.SPAWN,
            encoding=asked.encoding,
            blob=asked.blob,
            parent=None,
            traceparent="",
            sent_ns=None,
            options=await self.letters.options_of(asked.function, asked.workspace),
            webhook=asked.webhook,
        )

    # ------------------------------------------------------------------ links

    async def _link(self, letter: DeadLetter, into: str) -> str:
        """Tie the letter to a new call; the one that it is tied to now."""
        subject = subjects.redrive(self.results.region, letter.workspace, letter.call, letter.index)
        try:
            await self._publish(subject, letter, into)
        except SubjectTaken:
            return await self.letters.link(letter)
        return into

    async def _link_back(self, letter: DeadLetter, into: str) -> None:
        try:
            await self._publish(subjects.redriven_from(self.results.region, letter.workspace, into), letter, into)
        except SubjectTaken:
            pass  # by somebody who did not come to make the call

    async def _publish(self, subject: str, letter: DeadLetter, into: str) -> None:
        link = Redriven(letter.call, letter.index, letter.workspace, into, self.clock.now())
        await self.bus.publish(subject, link.encode(), msg_id=f"{subject}.{into}", ttl_s=KEPT_S)


def position_text(place: tuple[int, str, int]) -> str:
    """A position that sorts as text."""
    failed_at_ms, call, index = place
    return f"{failed_at_ms:015d}.{call}.{index:08d}"
