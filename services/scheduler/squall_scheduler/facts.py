"""Facts: folds what the bus says into the view that policies decide on.

Owns the newest known value of every node, claim, desired count, declaration, image and verdict, and what refusals and
failed starts teach. Does no I/O and has no clock. Every method may be called twice with the same fact.
"""

from __future__ import annotations

from dataclasses import replace

from squall.spec import FunctionSpec
from squall_contracts.builds import ImageRecord
from squall_contracts.functions import AppRecord, FunctionRecord, PoolRecord
from squall_contracts.nodes import ClaimState, ContainerClaim, ContainerStats, NodeFact
from squall_contracts.scaling import Desired, Verdict
from squall_scheduler.policy import backoff
from squall_scheduler.state import Claim, Cluster, Gpu, Node, NodeId, Pool, PoolId, Refusal, Trouble, Usage, milli

STATS_TTL_S = 3.5
"""Three missed messages: what a node said about idleness before that no longer counts."""
FORGET_NODE_S = 300.0


class Facts:
    """Everything the scheduler has been told."""

    def __init__(self) -> None:
        self.heard_since = 0.0
        self._nodes: dict[NodeId, Node] = {}
        self._stale_usage: set[NodeId] = set()
        self._claims: dict[PoolId, dict[str, Claim]] = {}
        self._claims_on: dict[NodeId, dict[str, Claim]] = {}
        self._desired: dict[PoolId, Desired] = {}
        self._verdicts: dict[PoolId, Verdict] = {}
        self._functions: dict[str, FunctionRecord] = {}
        self._records: dict[PoolId, PoolRecord] = {}
        self._stopped_apps: set[str] = set()
        self._images: dict[str, ImageRecord] = {}
        self._image_of: dict[str, str] = {}
        self._trouble: dict[PoolId, Trouble] = {}
        self._refusals: dict[PoolId, dict[NodeId, Refusal]] = {}
        self._idle: dict[NodeId, tuple[float, dict[str, float]]] = {}

    # ------------------------------------------------------------------ views

    def cluster(self) -> Cluster:
        """All nodes, each with what its claims hold."""
        for node_id in self._stale_usage:
            if (node := self._nodes.get(node_id)) is not None:
                self._nodes[node_id] = replace(node, used=self._usage(node_id))
        self._stale_usage.clear()
        return Cluster(nodes=dict(self._nodes), heard_since=self.heard_since)

    def pool(self, pool: PoolId, now: float) -> Pool:
        """One pool as it is known now."""
        record = self._records.get(pool)
        function = self._functions.get(record.function_id) if record else None
        claims = tuple(sorted(self._claims.get(pool, {}).values(), key=lambda claim: claim.message.ordinal))
        image = self._image_of.get(function.function_id, "") if function else ""
        built = self._images.get(image)
        return Pool(
            id=pool,
            record=record,
            function=function,
            stopped=record is not None and record.app_id in self._stopped_apps,
            desired=self._desired.get(pool),
            claims=claims,
            idle_since=self._idle_of(claims, now),
            image=image,
            image_state=built.state if built else "",
            image_error=str(built.error.get("message", "")) if built else "",
            trouble=self._trouble.get(pool),
            refusals=dict(self._refusals.get(pool, {})),
            verdict=self._verdicts.get(pool),
        )

    def pools(self) -> set[PoolId]:
        """Every pool that has, or should have, containers."""
        return set(self._desired) | set(self._claims)

    def pools_of(self, *, app: str = "", function: str = "", image: str = "") -> set[PoolId]:
        """The pools that a fact about an app, a function or an image concerns."""
        found = set()
        for pool, record in self._records.items():
            built_from = self._image_of.get(record.function_id, "")
            if record.app_id == app or record.function_id == function or (image and built_from == image):
                found.add(pool)
        return found

    def pools_on(self, node: NodeId) -> set[PoolId]:
        """The pools that have a claim on a node."""
        return {PoolId(claim.message.pool) for claim in self._claims_on.get(node, {}).values()}

    def lost_nodes(self, now: float) -> set[NodeId]:
        """Nodes that still have claims and are gone for good."""
        cluster = self.cluster()
        return {node for node, claims in self._claims_on.items() if claims and cluster.lost(node, now)}

    def containers(self) -> int:
        """How many claims there are."""
        return sum(len(claims) for claims in self._claims.values())

    def nodes(self) -> int:
        """How many nodes are known."""
        return len(self._nodes)

    def missing(self) -> int:
        """How many containers are wanted and cannot be placed."""
        return sum(verdict.missing for verdict in self._verdicts.values())

    def has_container(self, pool: PoolId) -> bool:
        """Whether anything of the pool may be running."""
        return any(claim.holding for claim in self._claims.get(pool, {}).values())

    def waiting(self, pool: PoolId) -> str:
        """Why the pool's inputs wait; empty if nobody knows."""
        verdict = self._verdicts.get(pool)
        return verdict.message if verdict else ""

    def spec(self, pool: PoolId) -> FunctionSpec | None:
        """What the pool's function declares."""
        record = self._records.get(pool)
        function = self._functions.get(record.function_id) if record else None
        return function.spec if function else None

    # ------------------------------------------------------------------ nodes

    def node_seen(self, fact: NodeFact, now: float) -> bool:
        """A node told what it has. True if it may take more, or other, containers than before."""
        node_id = NodeId(fact.node)
        old = self._nodes.get(node_id)
        new = Node(
            id=node_id,
            cpu_milli=int(round(fact.cpu * 1000, 6)),
            memory_mib=fact.memory_mib,
            gpus=tuple(Gpu(uuid=gpu.uuid, type=gpu.type) for gpu in fact.gpus),
            backends=frozenset(fact.backends),
            images=frozenset(fact.images),
            templates=frozenset(fact.templates),
            max_containers=fact.max_containers,
            draining=fact.draining,
            seen_at=now,
            used=old.used if old else Usage(),
        )
        self._nodes[node_id] = new
        if old is None:
            self._stale_usage.add(node_id)
            return True
        comparable = replace(old, seen_at=now, images=new.images, templates=new.templates)
        return comparable != new or not old.alive(now)

    def node_gone(self, node: NodeId) -> None:
        """Its key was deleted, or expired: nothing new goes there."""
        if (known := self._nodes.get(node)) is not None:
            self._nodes[node] = replace(known, present=False)

    def drop_silent_nodes(self, now: float) -> None:
        """Nodes that have been away for long and hold nothing are no longer worth a reason in a verdict."""
        for node_id, node in list(self._nodes.items()):
            if node.silent_for_s(now) > FORGET_NODE_S and not self._claims_on.get(node_id):
                del self._nodes[node_id]
                self._idle.pop(node_id, None)

    def stats_seen(self, stats: ContainerStats, now: float) -> None:
        """What a node's containers are doing; rows: container, pool, running, slots, idle since, state."""
        idle = {str(row[0]): 0.0 if row[2] else float(row[4]) for row in stats.containers}
        self._idle[NodeId(stats.node)] = (now, idle)

    def _idle_of(self, claims: tuple[Claim, ...], now: float) -> dict[str, float]:
        found = {}
        for claim in claims:
            seen_at, idle = self._idle.get(claim.node, (0.0, {}))
            if now - seen_at <= STATS_TTL_S and claim.message.container in idle:
                found[claim.message.container] = idle[claim.message.container]
        return found

    def _usage(self, node: NodeId) -> Usage:
        usage = Usage()
        for claim in self._claims_on.get(node, {}).values():
            if claim.holding:
                usage = usage.plus(milli(claim.message.cpu), claim.message.memory_mib, claim.message.gpus)
        return usage

    # ------------------------------------------------------------------ claims

    def claim_changed(self, message: ContainerClaim, revision: int, now: float) -> bool:
        """A claim as it is now. False for what was known already."""
        claim = Claim(message=message, revision=revision)
        pool = PoolId(message.pool)
        old = self._claims.setdefault(pool, {}).get(claim.key)
        if old is not None and old.revision >= revision:
            return False
        if old is not None and old.node != claim.node:
            self._claims_on[old.node].pop(claim.key, None)
            self._stale_usage.add(old.node)
        self._claims[pool][claim.key] = claim
        self._claims_on.setdefault(claim.node, {})[claim.key] = claim
        self._stale_usage.add(claim.node)
        self._learn(pool, claim, now)
        return True

    def claim_gone(self, key: str, revision: int) -> bool:
        """A claim was deleted. False if a newer one has its place already."""
        pool = PoolId(key.rpartition(".")[0])
        claims = self._claims.get(pool, {})
        old = claims.get(key)
        if old is None or old.revision > revision:
            return False
        del claims[key]
        if not claims:
            del self._claims[pool]
        self._claims_on[old.node].pop(key, None)
        self._stale_usage.add(old.node)
        return True

    def refused(self, pool: PoolId, node: NodeId, reason: str, now: float) -> None:
        """A node does not want a container of the pool."""
        refusals = self._refusals.setdefault(pool, {})
        times = refusals[node].times + 1 if node in refusals else 1
        refusals[node] = Refusal(reason=reason, times=times, at=now)

    def _learn(self, pool: PoolId, claim: Claim, now: float) -> None:
        message = claim.message
        match message.state:
            case ClaimState.REFUSED:
                self.refused(pool, claim.node, f"refused: {message.reason}", now)
            case ClaimState.FAILED:
                self._trouble[pool] = backoff.after_failure(
                    self._trouble.get(pool),
                    started_at=message.created_at,
                    now=now,
                    reason=message.reason or str(message.error.get("message", "")),
                    user_error=message.user_error,
                )
            case ClaimState.READY:
                self._refusals.get(pool, {}).pop(claim.node, None)
                if (trouble := self._trouble.get(pool)) is not None:
                    self._trouble[pool] = replace(trouble, over=True)
            case _:
                pass

    # ------------------------------------------------------------------ declarations and decisions

    def desired_changed(self, pool: PoolId, desired: Desired | None) -> Desired | None:
        """The autoscaler's decision; returns the one before."""
        old = self._desired.pop(pool, None)
        if desired is not None:
            self._desired[pool] = desired
        return old

    def verdict_changed(self, pool: PoolId, verdict: Verdict | None) -> None:
        """A stored verdict. After a restart it is the only memory of how often starts of the pool have failed."""
        self._verdicts.pop(pool, None)
        if verdict is None:
            return
        self._verdicts[pool] = verdict
        if verdict.failures and pool not in self._trouble:
            reason = verdict.message.rpartition("; next try")[0]
            failed_at = verdict.retry_at - backoff.pause_s(verdict.failures)
            self._trouble[pool] = Trouble(failures=verdict.failures, failed_at=failed_at, reason=reason)

    def pool_declared(self, pool: PoolId, record: PoolRecord | None) -> None:
        """The gateway made a pool, or it was cleaned up."""
        if record is not None:
            self._records[pool] = record
            return
        for known in (self._records, self._trouble, self._refusals):
            known.pop(pool, None)

    def function_declared(self, function_id: str, record: FunctionRecord | None) -> None:
        """A version of a function exists, or no longer."""
        if record is None:
            self._functions.pop(function_id, None)
            self._image_of.pop(function_id, None)
            return
        self._functions[function_id] = record
        self._image_of[function_id] = record.spec.image.id

    def app_changed(self, app_id: str, record: AppRecord | None) -> None:
        """Whether an app is stopped; one that was removed is."""
        if record is None or record.state == "stopped":
            self._stopped_apps.add(app_id)
        else:
            self._stopped_apps.discard(app_id)

    def image_changed(self, image: str, record: ImageRecord | None) -> None:
        """State of a build."""
        self._images.pop(image, None)
        if record is not None:
            self._images[image] = record
