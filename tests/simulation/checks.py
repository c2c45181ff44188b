"""What must hold. Safety is looked at as it happens, from beside the platform; liveness after everything is healed."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tests.simulation.containers import Run, SimContainer
from tests.simulation.streams import OPERATION, Kept, Stream

from squall.spec import Outcome
from squall_contracts.calls import AttemptFailed, CallRequested, CallResult
from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_contracts.scaling import Desired
from squall_contracts.subjects import parse_call
from squall_contracts.topology import LEASE_S

if TYPE_CHECKING:
    from tests.simulation.world import World

LIVE = frozenset({ClaimState.PROPOSED, ClaimState.STARTING, ClaimState.READY})
TOLD_S = 1.5
"""An agent tells once a second, and on change, what its containers do."""
AFTER_CANCEL_S = 1.5
"""A cancel is told by a message: so long it may be on its way to an agent that is well."""


class Checks:
    """Sees every write to the server, every run of user code, and what callers are told."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._effects = world.effects
        self._results: dict[tuple[str, int], CallResult] = {}
        self._attempts: dict[tuple[str, int], AttemptFailed] = {}
        self._journal: dict[tuple[str, int], CallRequested] = {}
        self._accepted_at: dict[tuple[str, int], float] = {}
        self._claims: dict[str, dict[str, ContainerClaim]] = defaultdict(dict)
        self._claimed: dict[str, str] = {}
        """By container: its claim's key."""
        self._desired: dict[str, Desired] = {}
        self._leaders: dict[str, str] = {}
        self.server_crashed_at = float("-inf")
        world.server.on_write = self.on_write
        world.effects.on_start = self.on_start
        world.effects.on_stop = self.on_stop
        world.effects.on_container = self.on_container

    # ------------------------------------------------------------------ writes

    def on_write(self, stream: Stream, kept: Kept) -> None:
        """One record was stored."""
        match stream.name.partition("_")[0]:
            case "RESULTS":
                self._on_result(kept)
            case "ATTEMPTS":
                self._on_attempt(kept)
            case "JOURNAL":
                request = CallRequested.decode(kept.data)
                self._journal[request.call, request.index] = request
                self._accepted_at[request.call, request.index] = self._world.loop.time()
            case "EVENTS":
                self._on_event(kept)
            case "WORK":
                self._world.counts["requeued"] += 1
                self._world.note("requeued", kept.subject)
            case "KV":
                self._on_key(stream.name[3:], kept)

    def _on_result(self, kept: Kept) -> None:
        result = CallResult.decode(kept.data)
        key = (result.call, result.index)
        self._world.note("result", *key, result.outcome, result.attempt, result.node)
        self._world.counts[f"outcome_{result.outcome}"] += 1
        if key in self._results:
            self._world.violation(f"a second result of {key}")
        self._results[key] = result
        runs = self._effects.by_input.get(key, [])
        counted = self._attempts.get(key)
        user, infra = (counted.user_failures, counted.infra_failures) if counted else (0, 0)
        retries = self._spec(key).retry.max_retries
        if result.outcome == Outcome.SUCCEEDED.value:
            if not any(run.ended == "ok" and run.container == result.container for run in runs):
                self._world.violation(f"{key} is recorded as succeeded, and no run of it has")
        elif result.attempt and result.error is not None and result.error.get("kind") == "user":
            if user != retries:
                self._world.violation(f"{key} failed after {user} counted retries, not {retries}")
        elif result.outcome == Outcome.TIMED_OUT.value and user != retries:
            self._world.violation(f"{key} timed out after {user} counted retries, not {retries}")
        elif result.outcome == Outcome.CANCELLED.value:
            if not any(asked.call == result.call and asked.cancel_sent_at < 1e9 for asked in self._world.asked):
                self._world.violation(f"{key} is recorded as cancelled, and nobody has cancelled it")
        elif result.outcome == Outcome.EXPIRED.value:
            self._on_expired(key, runs, user + infra)

    def _on_expired(self, key: tuple[str, int], runs: list[Run], counted: int) -> None:
        if any(run.ended == "ok" for run in runs):
            return  # its agent was cut off with the result
        for run in runs:
            if run.ended == "" and self._well(run.node):
                self._world.violation(f"{key} is recorded as expired while {run.node} runs it")

    def _on_attempt(self, kept: Kept) -> None:
        counted = AttemptFailed.decode(kept.data)
        key = (counted.call, counted.index)
        before = self._attempts.get(key)
        total = counted.user_failures + counted.infra_failures
        earlier = before.user_failures + before.infra_failures if before else 0
        self._world.note("counted", *key, counted.kind, counted.user_failures, counted.infra_failures)
        self._world.counts[f"counted_{counted.kind}"] += 1
        if total != earlier + 1:
            self._world.violation(f"failures of {key} are counted from {earlier} to {total}")
        if counted.user_failures > self._spec(key).retry.max_retries:
            self._world.violation(f"{key} is retried {counted.user_failures} times")
        failed = sum(self._failed_by_itself(key, run) for run in self._effects.by_input.get(key, ()))
        if counted.user_failures > failed:
            self._world.violation(f"{key} has {counted.user_failures} counted failures, and failed {failed} times")
        if key in self._results and counted.kind == "user":
            self._world.counts["counted_after_result"] += 1
        self._attempts[key] = counted

    def _failed_by_itself(self, key: tuple[str, int], run: Run) -> bool:
        """It raised, or was stopped because it ran too long; losses are no failures of the user's code."""
        too_long = (run.ended_at or 0.0) - run.started_at >= self._spec(key).timeout_s
        return run.ended == "raised" or (run.ended in ("cancelled", "lost") and too_long)

    def _on_event(self, kept: Kept) -> None:
        for name in (b"superseded", b"abandoned", b"skipped"):
            if name in kept.data:
                self._world.counts[name.decode()] += 1
                self._world.note(name.decode(), kept.subject)

    def _on_key(self, bucket: str, kept: Kept) -> None:
        key, gone = kept.subject.split(".", 2)[2], OPERATION in kept.headers
        match bucket:
            case "containers":
                self._on_claim(key, None if gone else ContainerClaim.decode(kept.data))
            case "desired":
                self._on_desired(key, None if gone else Desired.decode(kept.data))
            case "leases" if not gone:
                holder = kept.data.decode()
                if self._leaders.setdefault(key, holder) != holder:
                    self._world.counts["takeover"] += 1
                    self._world.note("takeover", key, holder)
                self._leaders[key] = holder

    def _on_claim(self, key: str, claim: ContainerClaim | None) -> None:
        pool = key.rpartition(".")[0]
        self._world.note("claim", key, claim.state if claim else "gone", claim.node if claim else "")
        if claim is None:
            self._claims[pool].pop(key, None)
            return
        before = self._claims[pool].get(key)
        if before is not None and before.container != claim.container:
            self._world.violation(f"claim {key} went from {before.container} to {claim.container}")
        if before is not None and before.state == ClaimState.READY and claim.state == ClaimState.DRAINING:
            self._on_drain(claim)
        self._claims[pool][key] = claim
        self._claimed[claim.container] = key
        live = sum(each.state in LIVE for each in self._claims[pool].values())
        limit = self._function(claim.function_id).scaling.max_containers
        if limit is not None and live > limit:
            self._world.violation(f"{live} live claims of {pool}, at most {limit} are allowed")

    def _on_drain(self, claim: ContainerClaim) -> None:
        container = self._effects.live.get(claim.container)
        busy = [] if container is None else container.busy_since()
        if busy and self._world.loop.time() - min(busy) > TOLD_S and self._well(claim.node) and not self._was_lossy():
            self._world.violation(f"{claim.container} is drained while it is busy: {claim.reason}")

    def _on_desired(self, pool: str, desired: Desired | None) -> None:
        before = self._desired.pop(pool, None)
        if desired is None:
            return
        self._desired[pool] = desired
        self._world.note("desired", pool, desired.count, desired.reason)
        sample = desired.inputs
        missing = sample.get("inputs") is None or not sample.get("heard", True)
        if before is not None and desired.count < before.count and missing:
            self._world.violation(f"{pool} scaled down from {before.count} to {desired.count} on missing data")

    # ------------------------------------------------------------------ user code

    def on_container(self, container: SimContainer) -> None:
        """A container came to life."""
        key = self._claimed.get(container.id)
        if key is None:
            self._world.violation(f"container {container.id} was started without a claim")
        twins = [c for c in self._effects.live.values() if c.id == container.id and c is not container]
        if twins:
            self._world.violation(f"container {container.id} exists twice")

    def on_stop(self, container: SimContainer, reason: str) -> None:
        """A container is ended by its agent."""
        if container.running and reason == "stop" and self._well(container.backend.node):
            self._world.violation(f"{container.id} was stopped while it ran {sorted(container.running)}")

    def on_start(self, run: Run) -> None:
        """User code begins."""
        world, key = self._world, (run.call, run.index)
        now = world.loop.time()
        world.note("runs", *key, run.attempt, run.node)
        earlier = self._effects.by_input[key]
        for other in earlier:
            if other is not run and not other.ended:
                world.counts["ran_twice_at_once"] += 1
                if other.agent is run.agent:
                    world.violation(f"{run.node} runs {key} twice at once")
                if self._well(other.node) and self.server_crashed_at < other.started_at:
                    world.violation(f"{key} runs on {run.node} while {other.node}, which is well, runs it")
        result = self._results.get(key)
        if result is not None:
            world.counts["started_after_result"] += 1
        for asked in world.asked:
            cancelled_at = asked.cancel_acked_at
            if asked.call != run.call or cancelled_at is None or now <= cancelled_at + AFTER_CANCEL_S:
                continue
            if self._accepted_at[key] < asked.cancel_sent_at and self._well(run.node):
                world.violation(f"{key} starts {now - cancelled_at:.1f} s after its cancel was acknowledged")

    def _well(self, node: str) -> bool:
        """Whether nothing has happened to the agent for longer than a lease."""
        slot = next(slot for slot in self._world.slots if slot.name == node)
        return slot.alive and slot.unwell_until <= self._world.loop.time() and not self._lossy()

    def _was_lossy(self) -> bool:
        """Schedulers may have missed what agents told, or have just begun."""
        return self._lossy() or any(s.unwell_until > self._world.loop.time() for s in self._world.slots)

    def _lossy(self) -> bool:
        network = self._world.network
        return bool(network.slow or network.lost)

    # ------------------------------------------------------------------ the end

    def unfinished(self) -> str:
        """What keeps the platform from being at rest; empty when nothing does."""
        open_inputs = [key for key in self._journal if key not in self._results]
        if open_inputs:
            return f"{len(open_inputs)} accepted inputs have no result: {open_inputs[:3]}"
        waiting = [asked.call for asked in self._world.asked if not asked.ended and self._known(asked)]
        if waiting:
            return f"callers wait for {waiting[:3]}"
        if not self._world.options.rests:
            return self._queued()
        if claims := sum(map(len, self._claims.values())):
            return f"{claims} claims are left"
        if self._effects.live:
            return f"{len(self._effects.live)} containers are left"
        return self._queued()

    def _queued(self) -> str:
        queued = sum(len(s.kept) for s in self._world.server.streams.values() if s.name.startswith("WORK"))
        return f"{queued} inputs are left in WORK" if queued else ""

    def _known(self, asked: object) -> bool:
        return True

    def at_the_end(self) -> None:
        """Everything that can only be said when all is over."""
        for asked in self._world.asked:
            for index in asked.acked:
                if (asked.call, index) not in self._journal:
                    self._world.violation(f"{asked.call} input {index} was acknowledged and is not in the journal")
            for index, answers in asked.told.items():
                if len(answers) > 1:
                    self._world.violation(f"callers were given {len(answers)} results of {asked.call} input {index}")
            if asked.kind == "map" and asked.ended and asked.cancel_acked_at is None:
                self._map_is_whole(asked.call, asked.inputs, asked.yielded, asked.ordered)
        for error in self._world.loop.errors:
            self._world.violation(f"a task failed: {error}")
        for key, result in self._results.items():
            if key not in self._journal:
                self._world.violation(f"a result without an accepted input: {key} {result.outcome}")

    def _map_is_whole(self, call: str, inputs: int, yielded: list[int], ordered: bool) -> None:
        if sorted(yielded) != list(range(inputs)) or (ordered and sorted(yielded) != yielded):
            self._world.violation(f"map {call} of {inputs} inputs gave {yielded}")

    # ------------------------------------------------------------------ declarations

    def _function(self, function_id: str) -> object:
        return next(f for f in self._world.options.functions if f"fu-{f.name}" == function_id)

    def _spec(self, key: tuple[str, int]) -> object:
        return self._function(self._journal[key].function)


__all__ = ["LEASE_S", "Checks", "parse_call"]
