"""Variants of functions: made when a call first asks for options, under an id that equal options always give."""

from __future__ import annotations

from dataclasses import replace

from squall.http_api.protocol import decode_options
from squall_bus import Bus, KeyExists
from squall_contracts.functions import SPECS, FunctionRecord
from squall_gateway.apps import function_id
from squall_gateway.directory import Directory
from squall_gateway.objects import Objects
from squall_gateway.policy.variants import applied
from squall_gateway.secrets import Secrets
from squall_service.clock import Clock


class Variants:
    """Writes the records of variants."""

    def __init__(self, bus: Bus, directory: Directory, clock: Clock, secrets: Secrets, objects: Objects) -> None:
        self._specs = bus.kv(SPECS)
        self._directory = directory
        self._clock = clock
        self._secrets = secrets
        self._objects = objects

    async def of(self, function: FunctionRecord, options: str) -> FunctionRecord:
        """The variant of a version. Raises `InvalidError` for options that do not fit its declaration."""
        if function.options == options:
            return function  # a repeated request is pinned to what its call was accepted for: the variant itself
        spec = applied(function.spec, decode_options(options))
        # Of the version's id as well: what a pinned version is called with must not outlive it under another.
        made = function_id(f"{function.app_id}.{function.function_id}", function.version, spec)
        known = self._directory.known_function(made)
        if known is not None:
            return known
        await self._secrets.check([spec], function.workspace)
        await self._objects.check_volumes([spec], function.workspace)
        record = replace(
            function,
            function_id=made,
            spec=spec,
            created_at=self._clock.now(),
            variant_of=function.published_id,
            options=options,
        )
        try:
            await self._specs.create(made, record.encode())
        except KeyExists:
            pass  # by another gateway, or in another life of this one
        return self._directory.saw_function(record)
