"""What a container cannot serve is told in one line: the frames below it are all ours."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from squall_runner import failures
from squall_runner.load import LoadError
from squall_runner.web import apps


async def test_an_image_without_fastapi_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacking(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("fastapi"):
            raise ImportError("No module named 'fastapi'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(LoadError) as caught:
        await apps.build(lambda: None, {"kind": "fastapi", "docs": False, "method": "GET"}, 1)

    told = failures.describe(caught.value)[0]["traceback"]
    assert told.count("\n") == 1
    assert 'pip_install("fastapi[standard]")' in told
