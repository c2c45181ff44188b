"""How many pools anonymous requests may make: each set of class parameters in a URL is one. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from squall.errors import ResourceExhaustedError

PER_S = 1.0
BURST = 100


@dataclass(slots=True)
class Allowance:
    """Of one function version: a burst, then one in a second."""

    left: float = BURST
    at: float = 0.0

    def take(self, now: float, there: int, most: int) -> ResourceExhaustedError | None:
        """Why there is no new pool; None when there may be one. `there`: how many the version has."""
        if there >= most:
            return ResourceExhaustedError(
                f"the function has {there} sets of parameters, which is as many as requests may make",
                fix="Raise SQUALL_GATEWAY_WEB_MAX_PARAMETER_SETS, or pass what varies as an ordinary argument.",
            )
        self.left = min(BURST, self.left + (now - self.at) * PER_S) if self.at else BURST
        self.at = now
        if self.left < 1:
            return ResourceExhaustedError(
                f"more than {BURST} new sets of parameters were asked for at once, then {PER_S:g} in a second",
                fix="Send the request again later, or use parameters that were used before.",
            )
        self.left -= 1
        return None
