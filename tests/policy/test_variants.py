"""What becomes of a declaration under the options of a handle."""

from __future__ import annotations

from dataclasses import replace

import pytest

from squall.errors import InvalidError
from squall.spec import (
    BatchPolicy,
    BucketMount,
    CodeRef,
    FunctionSpec,
    GpuRequest,
    MethodSpec,
    Options,
    Resources,
    RetryPolicy,
    ScalingPolicy,
)
from squall_gateway.policy.variants import applied

DECLARED = FunctionSpec(
    name="f",
    code=CodeRef("", "m", "f"),
    resources=Resources(cpu=2, memory_mib=512),
    scaling=ScalingPolicy(min_containers=2, max_containers=5, buffer_containers=1, scaledown_window_s=30),
    env={"A": "1", "B": "2"},
    timeout_s=60,
)


def test_no_options_only_stop_keeping_containers_warm() -> None:
    made = applied(DECLARED, Options())
    assert made.scaling == ScalingPolicy(min_containers=0, max_containers=5, buffer_containers=1, scaledown_window_s=30)
    assert (made.resources, made.env, made.timeout_s) == (DECLARED.resources, DECLARED.env, 60)


def test_each_option_replaces_its_declaration_and_no_other() -> None:
    made = applied(
        DECLARED,
        Options(
            cpu=4.0,
            gpus=(GpuRequest("H100"),),
            env={"B": "3"},
            retry=RetryPolicy(max_retries=2),
            timeout_s=5,
            max_containers=9,
            scaledown_window_s=2,
        ),
    )
    assert made.resources == Resources(cpu=4.0, memory_mib=512, gpus=(GpuRequest("H100"),))
    assert made.env == {"A": "1", "B": "3"}
    assert (made.retry.max_retries, made.timeout_s) == (2, 5)
    assert (made.scaling.max_containers, made.scaling.scaledown_window_s, made.scaling.buffer_containers) == (9, 2, 1)


@pytest.mark.parametrize(
    ("options", "slots"),
    [
        (Options(max_inputs=3), (3, 3)),
        (Options(max_inputs=6, target_inputs=2), (6, 2)),
        (Options(batching=BatchPolicy(8, 1)), (8, 8)),
        (Options(batching=BatchPolicy(8, 1), max_inputs=2, target_inputs=1), (16, 8)),
    ],
)
def test_slots_are_batch_size_times_what_runs_at_once(options: Options, slots: tuple[int, int]) -> None:
    scaling = applied(DECLARED, options).scaling
    assert (scaling.max_inputs, scaling.target_inputs) == slots


def test_a_smaller_batch_keeps_the_number_that_runs_at_once() -> None:
    batched = applied(DECLARED, Options(batching=BatchPolicy(8, 1), max_inputs=4, target_inputs=2))
    smaller = applied(batched, Options(batching=BatchPolicy(2, 1)))
    assert (smaller.scaling.max_inputs, smaller.scaling.target_inputs) == (8, 4)


def test_options_that_do_not_fit_the_declaration_are_refused() -> None:
    two = FunctionSpec(name="C", code=CodeRef("", "m", "C"), methods=(MethodSpec("a"), MethodSpec("b")), is_class=True)
    with pytest.raises(InvalidError, match="no other method"):
        applied(two, Options(batching=BatchPolicy(2, 1)))
    with pytest.raises(InvalidError, match="timeout"):
        applied(DECLARED, Options(timeout_s=0))


def test_later_options_win_over_earlier_ones_and_keep_the_rest() -> None:
    assert Options(cpu=2.0, timeout_s=9).over(Options(cpu=1.0, memory_mib=64)) == Options(
        cpu=2.0, memory_mib=64, timeout_s=9
    )


def test_what_may_not_use_the_network_gets_no_bucket_by_options() -> None:
    buckets = (BucketMount("/out", "anybodys", endpoint="https://s3.example.com"),)
    assert applied(DECLARED, Options(volumes=(), buckets=buckets)).buckets == buckets
    blocked = replace(DECLARED, isolation="sandbox", block_network=True)
    narrow = replace(DECLARED, isolation="sandbox", outbound_cidr_allowlist=("203.0.113.0/24",))
    for spec in (blocked, narrow):
        with pytest.raises(InvalidError, match="options add no buckets"):
            applied(spec, Options(volumes=(), buckets=buckets))
        declared = replace(spec, buckets=buckets)
        assert applied(declared, Options(timeout_s=5)).buckets == buckets
        assert applied(declared, Options(volumes=(), buckets=())).buckets == ()
