"""Settlement: how a held call leaves this agent. Record, then reply, then ack, always in this order.

A spawned call that ends badly is kept as a dead letter before that. Owns the writes to RESULTS, ATTEMPTS and LETTERS,
and the fence in front of them: success may always be recorded (the first write wins), a failure only while the queue is
known to regard the call as ours.
"""

from __future__ import annotations

from squall.spec import Outcome
from squall_bus import Bus, BusError, BusUnavailable, PublishUnknown, StreamFull, SubjectTaken, WrongRevision
from squall_contracts import subjects
from squall_contracts.calls import AttemptFailed, CallResult
from squall_contracts.envelope import BadMessage
from squall_contracts.letters import dead_letter, makes_dead_letter
from squall_gpu_agent.events import Events
from squall_gpu_agent.held import FENCE_S, Held
from squall_gpu_agent.history import History
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.policy.lifecycle import Event
from squall_gpu_agent.policy.retry import HandBack, RetryAt
from squall_service.clock import Clock
from squall_service.failpoints import failpoint, failpoint_written
from squall_service.telemetry import log

SUCCEEDED = Outcome.SUCCEEDED.value
PUBLISH_S = 15.0
AGAIN_S = 0.25
MAX_HISTORY_LINES = 20
EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
"""ATTEMPTS is written only if nobody else has counted since we read it: a second holder of the call would."""


class Settlement:
    """Writes what became of held calls."""

    def __init__(self, bus: Bus, identity: Identity, clock: Clock, *, history: History, events: Events) -> None:
        self._bus = bus
        self._identity = identity
        self._clock = clock
        self._history = history
        self._events = events

    # ------------------------------------------------------------------ results

    async def record(self, held: Held, result: CallResult, ttl_s: float, event: str, detail: str = "") -> None:
        """Record this result, unless there is one already; then reply with what is recorded, and ack."""
        data = result.encode()
        recorded = None
        if await self._keep_letter(held, result, ttl_s):
            recorded = await self._store(held, result, data, ttl_s)
        if recorded is None:
            self.abandon(held)
            return
        failpoint("agent.recorded")
        held.recorded_ns = int(self._clock.now() * 1e9)
        if recorded is data or _attempt_of(recorded) == result.attempt != "":
            held.advance(Event.RECORDED)
            if held.told_started or held.number > 1 or result.outcome != SUCCEEDED:
                self._events.tell(held, event, detail)
        else:
            held.advance(Event.ALREADY_RECORDED)
            self._events.tell(held, "superseded", f"another result was recorded before: {_attempt_of(recorded)}")
        self._answer(held, recorded)

    def skip(self, held: Held, recorded: bytes) -> None:
        """The input has a result: tell who waits, and let the queue forget it."""
        held.advance(Event.ALREADY_RECORDED)
        self._events.tell(held, "skipped", "it has a result")
        self._answer(held, recorded)

    def abandon(self, held: Held) -> None:
        """Somebody else has it, or will have it: say nothing about it any more."""
        held.advance(Event.ABANDONED)
        self._events.tell(held, "abandoned", "this agent's lease was lost")

    def _answer(self, held: Held, recorded: bytes) -> None:
        if held.request.reply_to:
            self._bus.send(held.request.reply_to, recorded)
        held.advance(Event.REPLIED)
        failpoint_written("agent.replied", held.ack)
        failpoint_written("agent.acked")

    async def _keep_letter(self, held: Held, result: CallResult, ttl_s: float) -> bool:
        """Before the result, or a crash in between would leave a failed call without its letter; a letter whose result
        was never recorded counts for nothing. False when we may no longer record a failure."""
        request = held.request
        if not makes_dead_letter(request, result.outcome):
            return True
        letter = dead_letter(request, result)
        subject = subjects.letter(
            self._identity.region, letter.workspace, letter.app, letter.call, letter.index, letter.failed_at
        )
        msg_id = f"{letter.workspace}.{letter.call}.{letter.index}.{result.attempt or result.outcome}.letter"
        while (deadline_s := self._fence_left_s(held)) > 0:
            try:
                await self._bus.publish(subject, letter.encode(), msg_id=msg_id, ttl_s=ttl_s, deadline_s=deadline_s)
            except SubjectTaken:
                return True
            except (PublishUnknown, BusUnavailable, StreamFull) as error:
                log.warning("letter_not_kept_yet", call=request.call, index=request.index, reason=error.message)
                await self._clock.sleep(AGAIN_S)
            else:
                return True
        return False

    async def _store(self, held: Held, result: CallResult, data: bytes, ttl_s: float) -> bytes | None:
        """The bytes that are recorded in the end; None when we may no longer record a failure."""
        request = held.request
        subject = subjects.result(self._identity.region, request.workspace, request.call, request.index)
        # One id for each execution: with the call's alone a second, different result is answered as a duplicate.
        msg_id = f"{request.workspace}.{request.call}.{request.index}.{result.attempt or result.outcome}"
        success = result.outcome == SUCCEEDED
        while True:
            deadline_s = PUBLISH_S if success else self._fence_left_s(held)
            if deadline_s <= 0:
                return None
            try:
                stored = await self._bus.publish(subject, data, msg_id=msg_id, ttl_s=ttl_s, deadline_s=deadline_s)
                if not stored.duplicate:
                    return data
            except (SubjectTaken, PublishUnknown):
                pass
            except (BusUnavailable, StreamFull) as error:
                log.warning("result_not_recorded_yet", call=request.call, index=request.index, reason=error.message)
            if (recorded := await self._recorded(held)) is not None:
                return recorded
            await self._clock.sleep(AGAIN_S)

    async def _recorded(self, held: Held) -> bytes | None:
        try:
            return await self._history.result(held.request)
        except BusError as error:
            log.warning("result_not_readable_yet", call=held.request.call, reason=error.message)
            return None

    # ------------------------------------------------------------------ failed attempts

    async def superseded(self, held: Held) -> bool:
        """Before a failure counts for anything: whether the call has a result by now, which is then told. A queue that
        has forgotten its leases in a crash gave it to somebody else, and confirms ours all the same."""
        recorded = await self._ended_elsewhere(held)
        if recorded is None:
            return False
        held.advance(Event.ALREADY_RECORDED)
        self._events.tell(held, "superseded", f"a result was recorded before: {_attempt_of(recorded)}")
        self._answer(held, recorded)
        return True

    async def _ended_elsewhere(self, held: Held) -> bytes | None:
        """The recorded result; None when there is none, or when nobody could say while the call was ours."""
        while self._fence_left_s(held) > 0:
            try:
                return await self._history.result(held.request)
            except BusError as error:
                log.warning("result_not_readable_yet", call=held.request.call, reason=error.message)
                await self._clock.sleep(AGAIN_S)
        return None

    async def retry(self, held: Held, decision: RetryAt | HandBack) -> None:
        """Count the failure, then give the call back: after the delay of its policy, or at once."""
        if await self.count(held, decision, attempt=held.attempt):
            failpoint("agent.counted")
            held.advance(Event.COUNTED)
            self._events.tell(held, "attempt_failed", decision.reason)
            delay_s = decision.at - self._clock.now() if isinstance(decision, RetryAt) else 0.0
            held.hand_back(self._clock.monotonic(), max(0.0, delay_s))
        else:
            self.abandon(held)

    async def count(self, held: Held, decision: RetryAt | HandBack, *, attempt: str) -> bool:
        """Write the failure to ATTEMPTS. False when the call is no longer ours to speak for."""
        request = held.request
        now = self._clock.now()
        held.earlier = [*held.earlier, decision.reason][-MAX_HISTORY_LINES:]
        message = AttemptFailed(
            call=request.call,
            index=request.index,
            attempt=attempt,
            kind="user" if isinstance(decision, RetryAt) else "infra",
            user_failures=decision.totals.user,
            infra_failures=decision.totals.infra,
            failed_at=now,
            retry_at=decision.at if isinstance(decision, RetryAt) else now,
            reason=decision.reason,
            history=held.earlier,
        )
        seq = await self._publish_attempt(held, message)
        if seq is None:
            return False
        held.totals, held.attempts_seq = decision.totals, seq
        return True

    async def _publish_attempt(self, held: Held, message: AttemptFailed) -> int | None:
        subject = subjects.attempts(self._identity.region, held.request.workspace, message.call, message.index)
        while (deadline_s := self._fence_left_s(held)) > 0:
            try:
                stored = await self._bus.publish(
                    subject,
                    message.encode(),
                    headers={EXPECTED_SEQUENCE: str(held.attempts_seq)},
                    msg_id=f"{held.request.workspace}.{message.call}.{message.index}.{message.attempt}",
                    deadline_s=deadline_s,
                )
                return stored.seq
            except WrongRevision:
                return None
            except (PublishUnknown, BusUnavailable, StreamFull) as error:
                log.warning("attempt_not_counted_yet", call=message.call, reason=error.message)
                await self._clock.sleep(AGAIN_S)
        return None

    def _fence_left_s(self, held: Held) -> float:
        now = self._clock.monotonic()
        return held.confirmed_at + FENCE_S - now if held.speaks(now) else 0.0


def _attempt_of(recorded: bytes) -> str:
    try:
        return CallResult.decode(recorded).attempt
    except BadMessage:
        return "?"
