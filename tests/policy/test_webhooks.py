"""Webhooks: where they may go, when they are tried again, whose turn it is."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.errors import InvalidError
from squall.spec import check_webhook
from squall_gateway.policy.webhook_targets import TargetRules, endpoint_of, literal, networks
from squall_gateway.policy.webhook_tries import JITTER, SCHEDULE_S, Again, Answer, Delivered, GivenUp, decide
from squall_gateway.policy.webhook_turns import MAX_WAIT_S, SHARE, SLOTS, Turns

ELSEWHERE = ipaddress.ip_address("203.0.112.9")
PUBLIC = TargetRules(own=frozenset({ELSEWHERE}))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "168.63.129.16", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "2001::1"),
        # IPv4 addresses in IPv6 ones: mapped, compatible, 6to4, NAT64
        *("::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1", "64:ff9b:1::a00:1"),
        *("::ffff:169.254.169.254", "64:ff9b::a83f:8110", str(ELSEWHERE), f"::ffff:{ELSEWHERE}"),
    ],
)
def test_nothing_goes_to_an_address_that_is_not_public(address: str) -> None:
    assert PUBLIC.refusal(ipaddress.ip_address(address), 443) is not None


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_take_the_ports_of_web_servers_only(address: str) -> None:
    found = ipaddress.ip_address(address)

    assert [PUBLIC.refusal(found, port) for port in (80, 443, 8080, 8443)] == [None] * 4
    assert all("port" in (PUBLIC.refusal(found, port) or "") for port in (22, 25, 4222, 6379, 65535))


def test_what_the_operator_allows_is_reached_in_every_spelling_and_on_any_port() -> None:
    rules = TargetRules(networks(["127.0.0.1", "10.1.0.0/16", "fd00:1::/32"]), frozenset({ELSEWHERE}))

    allowed = ("127.0.0.1", "::ffff:127.0.0.1", "10.1.200.3", "fd00:1::7")
    assert [rules.refusal(ipaddress.ip_address(each), 4222) for each in allowed] == [None] * 4
    for refused in ("127.0.0.2", "10.2.0.1", "fd00:2::7", "169.254.169.254"):
        assert rules.refusal(ipaddress.ip_address(refused), 443) is not None


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com/x", "ftp://example.com", "file:///etc/passwd", "//example.com", "http://", "https:///x"),
        *("https://user:secret@example.com/", "https://@example.com/", "https://example.com/#part"),
        *(
            "https://example.com:99999/",
            "https://example.com:0/",
            "https://exa mple.com/",
            "https://example.com/\r\nX: 1",
        ),
        *(
            "https://example.com\\@127.0.0.1/",
            "https://bücher.example/",
            "https://[::1/",
            "https://e.com/" + "x" * 2050,
        ),
    ],
)
def test_what_is_no_url_of_a_receiver_is_refused(url: str) -> None:
    with pytest.raises(InvalidError, match="webhook must"):
        check_webhook(url)


def test_a_url_is_kept_as_it_is() -> None:
    for url in ("https://example.com", "http://example.com:8080/a/b?c=%20d", "https://[2606:4700::1111]:8443/x"):
        assert check_webhook(url) == url
    assert literal("https://example.com/x") is None
    assert literal("http://[::ffff:127.0.0.1]/") == (ipaddress.ip_address("::ffff:127.0.0.1"), 80)
    assert endpoint_of("https://Example.com/a") == endpoint_of("https://example.com:443/b")


def test_the_published_schedule_is_ten_tries_in_three_days() -> None:
    assert len(SCHEDULE_S) + 1 == 10
    assert 3 * 86400 <= sum(SCHEDULE_S) <= 3.5 * 86400

    waits = [decide(Answer(500, "answered 500"), n + 1, SCHEDULE_S, 1000.0, 0.0) for n in range(9)]

    assert waits == [Again(1000.0 + wait) for wait in SCHEDULE_S]
    assert isinstance(decide(Answer(500, "answered 500"), 10, SCHEDULE_S, 1000.0, 0.0), GivenUp)


@given(st.integers(0, 599), st.integers(1, 20), st.lists(st.floats(0.1, 1e5), max_size=12), st.floats(0, 1, width=32))
def test_every_answer_ends_a_try(status: int, tries: int, schedule: list[float], random: float) -> None:
    match decide(Answer(status, "x"), tries, schedule, 0.0, random):
        case Delivered():
            assert 200 <= status < 300
        case Again(at=at):
            assert tries <= len(schedule)
            assert schedule[tries - 1] <= at <= schedule[tries - 1] * (1 + JITTER)
        case GivenUp():
            assert status == 410 or tries > len(schedule)


def test_a_receiver_that_hangs_has_a_few_slots_and_the_others_come_back_in_turn() -> None:
    turns = Turns()
    assert [turns.take("slow:443", 0.0) for _ in range(SLOTS)] == [0.0] * SLOTS

    waits = [turns.take("slow:443", 0.0) for _ in range(100)]

    assert waits == sorted(set(waits)), "not all at once"
    assert turns.take("quick:443", 0.0) == 0.0
    turns.give_back("slow:443", 20.0, 20.0)
    assert turns.take("slow:443", 20.0) == 0.0
    assert turns.take("slow:443", 20.0) <= MAX_WAIT_S


def test_a_turn_that_was_not_used_does_not_count() -> None:
    shares = Turns(SHARE)
    assert [shares.take("w", 0.0) for _ in range(SHARE)] == [0.0] * SHARE
    wait_s = shares.take("w", 0.0)

    shares.give_back("w", None, 0.0)

    assert wait_s > 0
    assert shares.take("w", 0.0) == 0.0
    assert shares.take("other", 0.0) == 0.0
