"""Handles with options: what they ask for, how they combine, and what they refuse."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception
from squall.http_api.protocol import Header, decode_options
from squall.spec import BatchPolicy, GpuRequest, Options, RetryPolicy

app = squall.App("options")


@app.function()
def double(x: int) -> int:
    return 2 * x


@app.cls()
class Model:
    """A class with a method."""

    size: str = squall.parameter(default="small")

    @squall.method()
    def run(self, x: int) -> int:
        return x


def named() -> squall.Function:
    return squall.Function.from_name("options", "double")


def options_of(function: squall.Function) -> Options:
    found: Any = function._origin
    return decode_options(found.options)


def test_only_what_is_given_is_asked_for() -> None:
    asked = options_of(
        named().with_options(cpu=(1, 2), memory=256, gpu="h100:2", env={"A": "1"}, retries=3, timeout=9, region=None)
    )
    assert asked == Options(
        cpu=1.0,
        cpu_limit=2.0,
        memory_mib=256,
        gpus=(GpuRequest("H100", 2),),
        env={"A": "1"},
        retry=RetryPolicy(max_retries=3, backoff_coefficient=1.0, initial_delay_s=1.0),
        timeout_s=9.0,
    )


def test_options_are_chained_and_later_ones_win() -> None:
    chained = named().with_options(cpu=1, timeout=5).with_batching(max_batch_size=4, wait_ms=10).with_options(cpu=2)
    assert options_of(chained) == Options(cpu=2.0, timeout_s=5.0, batching=BatchPolicy(4, 10))


def test_equal_options_are_one_pool_however_they_were_given() -> None:
    one, other = named().with_options(cpu=1, timeout=5), named().with_options(timeout=5.0).with_options(cpu=1.0)
    assert vars(one._origin)["options"] == vars(other._origin)["options"]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"min_containers": 1}, "cannot set min_containers"),
        ({"cpu": "two"}, "cpu must be a number"),
        ({"timeout": 0}, "timeout must be"),
        ({"max_containers": 0}, "max_containers must be"),
        ({"env": {"SQUALL_TOKEN": "x"}}, "belong to the platform"),
    ],
)
def test_what_cannot_be_is_refused_at_once(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(exception.InvalidError, match=said):
        named().with_options(**keywords)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="colour"):
        named().with_options(colour="red")


def test_a_method_has_no_options_of_its_own() -> None:
    with pytest.raises(exception.InvalidError, match="all methods share containers"):
        Model().run.with_options(cpu=1)
    with pytest.raises(exception.InvalidError, match="all methods share containers"):
        Model().run.update_autoscaler(min_containers=1)


@pytest.mark.usefixtures("connected")
def test_calls_carry_the_options_also_after_the_handle_has_travelled(gateway: FakeGateway) -> None:
    gateway.serve(app)
    with app.run():
        large = double.with_options(cpu=2)
        assert pickle.loads(pickle.dumps(large)).remote(1) == large.remote(1) == 2
        instance = Model.with_concurrency(max_inputs=3)(size="big")
        assert pickle.loads(pickle.dumps(instance)).run.remote(4) == 4
        assert list(large.map([1, 2])) == [2, 4]
        assert double.remote(1) == 2

    sent = [headers.get(Header.OPTIONS, "") for _, path, headers in gateway.requests if Header.CALL in headers]
    asked = [decode_options(each) if each else None for each in sent]
    cpu = Options(cpu=2.0)
    assert asked[:3] == [cpu, cpu, Options(max_inputs=3, target_inputs=3)]
    assert asked[-1] is None


@pytest.mark.usefixtures("connected")
def test_a_handle_with_options_runs_its_body_here_too(gateway: FakeGateway) -> None:
    assert double.with_options(cpu=2).local(4) == 8
    assert double.with_options(cpu=2).with_idempotency_key("k").with_options(timeout=3).local(4) == 8
