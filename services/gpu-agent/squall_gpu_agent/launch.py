"""Launch: from an accepted claim to a container that is ready. Owns the order and the trace of a cold start."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.http_api.protocol import decode_parameters
from squall_contracts.calls import SpanVector
from squall_contracts.functions import FunctionRecord, PoolRecord
from squall_contracts.nodes import ContainerClaim
from squall_contracts.spans import AGENT_ACCEPT, CODE_FETCH, CONTAINER_START, row, span_id
from squall_gpu_agent.backend import Backend, Container, ContainerRequest, Log, Phase
from squall_gpu_agent.buckets.mounts import Buckets
from squall_gpu_agent.logs import Logs
from squall_gpu_agent.metering import SERVICE
from squall_gpu_agent.tokens import ContainerTokens
from squall_gpu_agent.volumes.mounts import Mounts
from squall_gpu_agent.web.lines import Lines
from squall_service.bundles import Bundles
from squall_service.clock import Clock
from squall_service.secrets import Secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A container that is ready."""

    container: Container
    rows: SpanVector
    ready_ns: int


class Launcher:
    """Starts containers."""

    def __init__(  # noqa: PLR0913 — what a container is made of comes from so many places
        self,
        backend: Backend,
        bundles: Bundles,
        tokens: ContainerTokens,
        logs: Logs,
        *,
        secrets: Secrets,
        clock: Clock,
        socket_path: Path,
        lines: Lines,
        mounts: Mounts,
        buckets: Buckets,
    ) -> None:
        self._backend = backend
        self._bundles = bundles
        self._tokens = tokens
        self._logs = logs
        self._secrets = secrets
        self._clock = clock
        self._socket_path = socket_path
        self._lines = lines
        self._mounts = mounts
        self._buckets = buckets

    async def launch(
        self,
        claim: ContainerClaim,
        function: FunctionRecord,
        pool: PoolRecord,
        gpu_env: dict[str, str],
        gpus: tuple[str, ...] = (),
        said: str = "",
    ) -> Launched:
        """Fetch the code, then start; its log begins with `said`. Raises `StartFailed`, `SquallError`."""
        accepted_ns = self._now_ns()
        async with asyncio.TaskGroup() as group:
            code = group.create_task(self._bundles.ensure(function.spec.code, function.workspace))
            token = group.create_task(self._tokens.of(function))
            opened = group.create_task(self._secrets.of(function.spec.secrets, function.workspace))
        on_log = self._logs.of(function.app_id, claim.pool, function.spec.name, claim.container)
        volumes = await self._mounts.of(claim.container, function, token.result())
        buckets = await self._buckets.of(claim.container, function, on_log)
        fetched_ns = self._now_ns()
        secrets, version = opened.result()
        request = ContainerRequest(
            container_id=claim.container,
            app_id=claim.app_id,
            function_id=claim.function_id,
            spec=function.spec,
            code_dir=code.result(),
            params=parameters(function, pool),
            env={**secrets, **self._env(function)},
            env_version=version,
            socket_path=self._socket_path,
            token=token.result(),
            gpu_env=gpu_env,
            gpus=gpus,
            volumes=volumes,
            buckets=buckets,
            web_key=self._lines.expect(claim.container) if has_web(function) else "",
        )
        if said:
            on_log(Log(container=claim.container, stream="system", text=said + "\n"))
        container = await self._backend.start(request, on_log)
        ready_ns = self._now_ns()
        marks = [(AGENT_ACCEPT, accepted_ns), (CODE_FETCH, fetched_ns)]
        rows = start_rows(claim, marks, container, ready_ns)
        return Launched(container=container, rows=rows, ready_ns=ready_ns)

    def forget(self, container: str) -> None:
        """It has ended, or did not start."""
        self._mounts.forget(container)
        self._buckets.forget(container)
        self._lines.forget(container)

    def _env(self, function: FunctionRecord) -> dict[str, str]:
        return {
            "MODAL_ENVIRONMENT": function.environment,
            **function.spec.env,
            "SQUALL_SERVER_URL": f"unix:{self._socket_path}",
            "SQUALL_ENVIRONMENT": function.environment,
        }

    def _now_ns(self) -> int:
        return int(self._clock.now() * 1e9)


def has_web(function: FunctionRecord) -> bool:
    """Whether any of its methods answers web requests."""
    return any(method.web is not None for method in function.spec.methods)


def parameters(function: FunctionRecord, pool: PoolRecord) -> dict[str, Any] | None:
    """Class parameters in the runner's form; None for a plain function."""
    if not function.spec.is_class:
        return None
    values = decode_parameters(pool.parameters) if pool.parameters else {}
    return {k: {"base64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for k, v in values.items()}


def start_rows(
    claim: ContainerClaim, marks: Sequence[tuple[str, int]], container: Container, ready_ns: int
) -> SpanVector:
    """The claim's rows and ours. Each phase begins where the one before ended, so that none of the wait is unnamed."""
    cursor = max((r[3] + r[4] for r in claim.spans), default=int(claim.created_at * 1e9))
    about = {"how": container.how, "why": container.why, "container": claim.container, "pool": claim.pool}
    rows: SpanVector = [list(r) for r in claim.spans]
    rows.append(row(CONTAINER_START, "", SERVICE, cursor, ready_ns, **about))
    for name, end_ns in marks:
        rows.append(row(name, CONTAINER_START, SERVICE, cursor, end_ns))
        cursor = max(cursor, end_ns)
    for phase in container.phases:
        end_ns = phase.start_ns + phase.duration_ns
        # Span ids come from names, and a start that makes its template has a phase twice.
        again = any(phase.name == r[0] for r in rows)
        more = {"span_id": span_id(claim.container, len(rows), "", phase.name)} if again else {}
        rows.append(row(phase.name, CONTAINER_START, SERVICE, cursor, end_ns, **more))
        cursor = max(cursor, end_ns)
    if container.phases and ready_ns > cursor:
        rows[-1][4] += ready_ns - cursor
    return rows


def phase_rows(phases: Sequence[Phase]) -> SpanVector:
    """Rows of a start that failed."""
    return [row(p.name, CONTAINER_START, SERVICE, p.start_ns, p.start_ns + p.duration_ns) for p in phases]
