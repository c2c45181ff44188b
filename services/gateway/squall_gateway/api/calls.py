"""POST /v1/calls, GET /v1/calls/{id}/result and POST /v1/spans: the call path. Plain functions, see
`squall_gateway.edge`."""

from __future__ import annotations

from dataclasses import dataclass

from squall.http_api.protocol import parse_blob_ref
from squall.ids import check_call_id
from squall.spec import Kind
from squall_contracts import spans
from squall_contracts.calls import CallResult
from squall_contracts.spans import row
from squall_gateway.accept import Acceptor, Input
from squall_gateway.answers import send_json
from squall_gateway.bodies import chunks, integer, query_values, wait_s, whole
from squall_gateway.call_headers import CallHeaders, blob_size, read_call_headers
from squall_gateway.call_spans import SERVICE, Accepted, now_ns
from squall_gateway.caller_spans import MAX_BODY_BYTES, CallerSpans, read_batches
from squall_gateway.edge import Exchange
from squall_gateway.generators import Generators
from squall_gateway.idempotency import IdempotencyKeys
from squall_gateway.large_results import ResultAnswers
from squall_gateway.metrics import Requests
from squall_gateway.pinning import Pinning
from squall_gateway.results import Results
from squall_gateway.targets import Target
from squall_gateway.waiting import Waiting
from squall_gateway.waits import NoResult, Waits
from squall_service.failpoints import failpoint


@dataclass(frozen=True, slots=True)
class CallRoutes:
    """Takes calls and answers with their results."""

    acceptor: Acceptor
    targets: Pinning
    waits: Waits
    results: Results
    generators: Generators
    keys: IdempotencyKeys
    waiting: Waiting
    requests: Requests
    caller_spans: CallerSpans
    answers: ResultAnswers

    async def post(self, exchange: Exchange, _: str) -> None:
        """Accept one input; answer with its result, or with 202 once it is accepted."""
        received_ns = now_ns(self.acceptor.clock)
        call = read_call_headers(exchange.headers, self.acceptor.bus.topology.shards)
        target = await self.targets.of(call, exchange.token.workspace)
        given = await self._input(exchange, call, target.function.workspace)
        if call.idempotency_key:
            claim = await self.keys.claim(call, target, given)
            if claim.accepted:
                await self._known(exchange, claim.call.call, wait_s(query_values(exchange.query)))
                return
            call = claim.call
        if call.kind is Kind.GENERATOR:
            await self.generators.answer(exchange, call, target, given, received_ns)
            return
        seconds = wait_s(query_values(exchange.query))
        if seconds:
            await self._accept_and_wait(exchange, call, target, given, (received_ns, seconds))
            return
        accepted = await self.acceptor.accept(call, target, given, reply_to=None, received_ns=received_ns)
        failpoint("gateway.accepted")
        self._count(call, accepted)
        self._trace(call, accepted, [])
        await send_json(exchange.send, 202, {"call": call.call, "waiting": ""})

    async def _known(self, exchange: Exchange, call: str, seconds: float) -> None:
        """Answer a keyed request about a call that was accepted before."""
        if seconds:
            await self._wait_for(exchange, call, 0, seconds)
        else:
            await send_json(exchange.send, 202, {"call": call, "waiting": ""})

    async def _input(self, exchange: Exchange, call: CallHeaders, workspace: str) -> Input:
        """The payload of a call: the body, or a blob, which may be the body too."""
        if call.blob is None:
            return Input(0, await whole(exchange.receive, self.acceptor.limits.inline_bytes))
        has_body = exchange.headers.get(b"content-length", b"0") != b"0"
        if has_body and blob_size(call.blob) <= self.acceptor.limits.payload_bytes:  # else it is refused all the same
            place = self.acceptor.blobs.of(workspace)
            await place.put(parse_blob_ref(call.blob)[0], chunks(exchange.receive))
        return Input(0, b"", call.blob)

    async def _accept_and_wait(
        self, exchange: Exchange, call: CallHeaders, target: Target, given: Input, times: tuple[int, float]
    ) -> None:
        received_ns, seconds = times
        wait = self.waits.open(call.call, 0, exchange.token.workspace)
        try:
            accepted = await self.acceptor.accept(call, target, given, reply_to=wait.reply_to, received_ns=received_ns)
            failpoint("gateway.accepted")
            self._count(call, accepted)
            if accepted.duplicate:
                await wait.look()
            outcome = await wait.result(seconds, exchange.receive)
        finally:
            await wait.close()
        replied_ns = now_ns(self.acceptor.clock)
        await self._answer(exchange, call.call, target.pool.pool, outcome)
        returned = row(spans.RESULT_RETURN, "", SERVICE, replied_ns, now_ns(self.acceptor.clock))
        self._trace(call, accepted, [returned] if isinstance(outcome, bytes) else [])

    async def result(self, exchange: Exchange, call: str) -> None:
        """Wait for the result of an input that was taken before, by whichever gateway."""
        values = query_values(exchange.query)
        self.results.check(check_call_id(call))
        await self._wait_for(exchange, call, integer(values, "index", 0), wait_s(values))

    async def _wait_for(self, exchange: Exchange, call: str, index: int, seconds: float) -> None:
        workspace = exchange.token.workspace
        wait = self.waits.open(call, index, workspace)
        try:
            await wait.look()
            pool = "" if wait.future.done() else await self.results.pool_of(call, index, workspace)
            outcome = await wait.result(seconds, exchange.receive)
        finally:
            await wait.close()
        await self._answer(exchange, call, pool, outcome)

    async def _answer(self, exchange: Exchange, call: str, pool: str, outcome: bytes | NoResult) -> None:
        if isinstance(outcome, bytes):
            record = CallResult.decode(outcome)
            self.acceptor.loads.ended(record.pool or pool)
            await self.answers.send(exchange, record)
        elif outcome is NoResult.LATER:
            await send_json(exchange.send, 202, {"call": call, "waiting": self.waiting.text(pool)})
        # NoResult.GONE: nobody reads an answer. The call goes on; its app's end cancels it.

    def _count(self, call: CallHeaders, accepted: Accepted) -> None:
        if not accepted.duplicate:
            self.requests.accepted[call.kind.value] += 1

    def _trace(self, call: CallHeaders, accepted: Accepted, rows: list[list[object]]) -> None:
        if accepted.trace.sampled:
            self.caller_spans.hold(accepted.batch(call.call, rows))

    async def post_spans(self, exchange: Exchange, _: str) -> None:
        """Take in what a caller has measured itself."""
        batches = read_batches(await whole(exchange.receive, MAX_BODY_BYTES))
        self.caller_spans.take(batches)
        await send_json(exchange.send, 202, {"batches": len(batches)})
