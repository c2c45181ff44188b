"""The autoscaler of a handle's containers: settings that are changed while it is deployed, and what is going on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from squall.blocking import blocking
from squall.declaration import is_number, is_whole
from squall.errors import InvalidError

if TYPE_CHECKING:
    from squall.invoke import Target

UNSET: Any = type("Unset", (), {"__repr__": lambda self: "as it is"})()
NOTHING = {"min_containers": 0, "max_containers": 0, "buffer_containers": 0}
"""What None means in `autoscaler.update`: no containers kept, no limit."""


class AutoscalerSettings(NamedTuple):
    """How many containers a function may have."""

    min_containers: int
    max_containers: Optional[int]
    """None: no limit."""
    buffer_containers: int
    scaledown_window: float
    """Seconds."""


class FunctionStats(NamedTuple):
    """What a function does at the moment."""

    backlog: int
    """Inputs that wait for a container."""
    num_total_runners: int
    """Containers that take inputs."""
    num_running_inputs: int
    input_headroom: int
    """Inputs that the present containers could take at once, on top of those that run."""


class Autoscaler:
    """`f.autoscaler`: `settings()` and `update(...)`."""

    def __init__(self, target: Callable[[], Target]) -> None:
        self._target = target

    @blocking
    def settings(self) -> AutoscalerSettings:
        """As they are at the moment: declared, or changed since."""
        return change(self._target(), {})

    @blocking
    def update(
        self,
        *,
        min_containers: Optional[int] = UNSET,
        max_containers: Optional[int] = UNSET,
        buffer_containers: Optional[int] = UNSET,
        scaledown_window: Optional[float] = UNSET,
    ) -> AutoscalerSettings:
        """Change what is given; it counts at once, and until the next deploy. None: none kept, or no limit."""
        given = {
            "min_containers": min_containers,
            "max_containers": max_containers,
            "buffer_containers": buffer_containers,
            "scaledown_window": scaledown_window,
        }
        return change(self._target(), {name: value for name, value in given.items() if value is not UNSET})


def change(target: Target, given: dict[str, Any]) -> AutoscalerSettings:
    """The settings after changing some of them. Raises `InvalidError` for values that do not fit."""
    from squall.http_api.routes import Route

    body: dict[str, Any] = {"pool": _pool(target)}
    for name, value in given.items():
        value = NOTHING.get(name) if value is None else value
        if name == "scaledown_window":
            if not is_number(value):
                raise InvalidError(f"scaledown_window must be a number of seconds, got {value!r}")
        elif not is_whole(value) or int(value or 0) < 0:
            raise InvalidError(f"{name} must be a whole number from 0, got {given[name]!r}")
        body["scaledown_window_s" if name == "scaledown_window" else name] = value
    answer = target.client.json("POST", Route.FUNCTION_SCALING, body)
    return AutoscalerSettings(
        answer["min_containers"],
        answer["max_containers"],
        answer["buffer_containers"],
        answer["scaledown_window_s"],
    )


def update(target: Target, given: dict[str, Any]) -> AutoscalerSettings:
    """As `update_autoscaler` has it: None leaves a setting as it is."""
    return change(target, {name: value for name, value in given.items() if value is not None})


def stats(target: Target) -> FunctionStats:
    """What waits and what runs."""
    from squall.http_api.routes import Route

    answer = target.client.json("POST", Route.FUNCTION_STATS, _pool(target))
    return FunctionStats(**{name: answer[name] for name in FunctionStats._fields})


def _pool(target: Target) -> dict[str, str]:
    return {
        "app_id": target.app_id,
        "function": target.function,
        "function_id": target.function_id,
        "parameters": target.parameters,
        "options": target.options,
    }
