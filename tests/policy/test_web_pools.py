"""How many pools anonymous requests may make."""

from __future__ import annotations

from squall_gateway.policy.web_pools import BURST, Allowance


def test_a_burst_then_one_in_a_second() -> None:
    allowance = Allowance()
    assert all(allowance.take(1.0, there=0, most=10_000) is None for _ in range(BURST))
    assert "at once" in str(allowance.take(1.5, there=0, most=10_000))
    assert allowance.take(2.6, there=0, most=10_000) is None
    assert allowance.take(2.7, there=0, most=10_000) is not None
    assert all(allowance.take(1e6, there=0, most=10_000) is None for _ in range(BURST))
    assert allowance.take(1e6, there=0, most=10_000) is not None


def test_never_more_than_the_limit() -> None:
    assert Allowance().take(1.0, there=4, most=5) is None
    refusal = Allowance().take(1.0, there=5, most=5)
    assert refusal is not None
    assert refusal.http_status == 429
