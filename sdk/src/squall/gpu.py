"""The old form of GPU requests, `squall.gpu.H100(count=2)`: each gives the text that `gpu=` takes, and says so."""

from __future__ import annotations

from typing import Callable, Optional

from squall.old_names import warn_renamed

KINDS = ("T4", "L4", "A10G", "A100", "L40S", "H100", "H200", "B200", "Any")


def __getattr__(name: str) -> Callable[..., str]:
    if name not in KINDS:
        raise AttributeError(f"module 'squall.gpu' has no attribute {name!r}; write gpu as text, such as \"H100:8\"")

    def request(count: int = 1, *, size: Optional[str] = None, memory: Optional[int] = None) -> str:
        kind = name.lower() if name == "Any" else name
        if size or memory:
            kind += f"-{size or f'{memory}GB'}"
        text = f"{kind}:{count}" if count != 1 else kind
        warn_renamed(f'`squall.gpu.{name}(...)` is written gpu="{text}" now', declaring=True)
        return text

    request.__name__ = name
    return request


def __dir__() -> list[str]:
    return list(KINDS)
