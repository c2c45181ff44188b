"""How failed attempts are repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from squall.declaration import is_number, is_whole
from squall.errors import InvalidError

if TYPE_CHECKING:
    from squall.spec import RetryPolicy


class Retries:
    """Repeat failed calls: after `initial_delay` seconds, then `backoff_coefficient` times longer each time.

    Exceptions and time-outs of user code are repeated, cancellations are not. What the platform loses (a crashed
    container, a machine that is gone) runs again without using a retry."""

    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
    ) -> None:
        if not is_whole(max_retries) or max_retries < 0:
            raise InvalidError(f"max_retries must be a whole number from 0, got {max_retries!r}")
        _check("backoff_coefficient", backoff_coefficient, 1, 10)
        _check("initial_delay", initial_delay, 0, 60)
        _check("max_delay", max_delay, 1, 60)
        self.max_retries = max_retries
        self.backoff_coefficient = float(backoff_coefficient)
        self.initial_delay = float(initial_delay)
        self.max_delay = float(max_delay)

    def policy(self) -> RetryPolicy:
        """The form that the platform knows."""
        from squall.spec import RetryPolicy

        return RetryPolicy(self.max_retries, self.backoff_coefficient, self.initial_delay, self.max_delay)

    def __repr__(self) -> str:
        return (
            f"Retries(max_retries={self.max_retries}, backoff_coefficient={self.backoff_coefficient}, "
            f"initial_delay={self.initial_delay}, max_delay={self.max_delay})"
        )


def _check(name: str, value: float, least: float, most: float) -> None:
    if not is_number(value) or not least <= value <= most:
        raise InvalidError(f"{name} must be {least} to {most}, got {value!r}")
