"""Secrets of build steps. Owns how a step names them; who opens them is the builder's business.

A step has `secrets` (what its author calls them, which is part of its key), `scope` (whose they are: layers made with
them are nobody else's) and `_secrets` (references to the values, which are part of nothing).
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from squall.errors import ImageBuildError
from squall.spec import ImageStep, digest
from squall_images.bases import Whose

USERNAME, PASSWORD = "REGISTRY_USERNAME", "REGISTRY_PASSWORD"
Secrets = Callable[[Sequence[Mapping[str, Any]]], Awaitable[Mapping[str, str]]]
"""Variables that references stand for. Raises `SquallError`."""


async def no_secrets(references: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """For machines that have none."""
    raise ImageBuildError(
        "a build step needs secrets, which cannot be opened here", fix="Build the image on a builder: deploy the app."
    )


async def of_step(arguments: Mapping[str, Any], secrets: Secrets) -> Mapping[str, str]:
    """The values that a step asks for."""
    if not arguments.get("secrets"):
        return {}
    if not arguments.get("scope"):
        raise ImageBuildError("a build step with secrets does not say whose they are", fix="Update the gateways.")
    references = arguments.get("_secrets")
    if not references:
        raise ImageBuildError(
            "a build step has lost its secrets", fix="Run or deploy the program that declares the image again."
        )
    return await secrets(references)


async def whose(base: ImageStep, secrets: Secrets) -> Whose:
    """On whose behalf a base is pulled."""
    values = await of_step(base.arguments, secrets)
    if not values:
        return Whose()
    if USERNAME not in values or PASSWORD not in values:
        raise ImageBuildError(
            f"the secret of from_registry has no {USERNAME} and {PASSWORD}", fix="Make it with these two keys."
        )
    login = base64.b64encode(f"{values[USERNAME]}:{values[PASSWORD]}".encode()).decode()
    scope = digest({"scope": base.arguments["scope"], "secrets": list(base.arguments["secrets"])})
    return Whose(login=login, scope=f"{scope[:24]}#")
