"""How many containers a pool should have: examples, stories with a clock, and what holds for every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from squall.spec import ScalingPolicy
from squall_autoscaler.policy.scaling import decide
from squall_autoscaler.policy.windows import History
from squall_autoscaler.state import Decision, Sample, Situation

EMPTY = Situation(policy=ScalingPolicy())


def a_situation(desired: int = 0, **given: object) -> Situation:
    policy = {k: given.pop(k) for k in list(given) if k in ScalingPolicy.__dataclass_fields__}
    return Situation(policy=ScalingPolicy(**policy), desired=desired, **given)  # type: ignore[arg-type]


def decided(sample: Sample, situation: Situation = EMPTY) -> Decision:
    return decide(sample, History(sample.at - 10_000), situation, sample.at)


def a_sample(inputs: int | None, ready: int = 0, **given: object) -> Sample:
    return Sample(at=0.0, inputs=inputs, ready=ready, **given)  # type: ignore[arg-type]


# --- examples --------------------------------------------------------------------------------------------------------


def test_one_container_for_each_input_that_waits_or_runs() -> None:
    assert decided(a_sample(4, ready=3, running=3)).count == 4


def test_a_container_that_takes_several_inputs_counts_for_its_target() -> None:
    assert decided(a_sample(9, ready=3), a_situation(max_inputs=8, target_inputs=4)).count == 3


def test_the_first_input_wakes_one_container_however_many_follow() -> None:
    assert decided(a_sample(5000)).count == 1


def test_a_pool_that_was_just_woken_is_not_put_to_sleep_before_its_input_is_in_the_queue() -> None:
    woken = a_situation(1, woken_at=-1.0)
    assert decided(a_sample(0), woken).count == 1
    assert decided(a_sample(0), replace(woken, woken_at=-4.0)).count == 0


def test_a_call_that_came_and_went_between_two_looks_keeps_its_container_for_the_window_and_no_longer() -> None:
    history, situation, counts = History(-1000.0), a_situation(1, scaledown_window_s=10, woken_at=0.0), []
    for second in range(15):
        sample = Sample(at=float(second), inputs=0, ready=1)
        counts.append(decide(sample, history, situation, sample.at).count)
    assert counts == [1] * 11 + [0] * 4


def grown(rate_of: Callable[[int], float], seconds: float, inputs: int = 1000) -> list[int]:
    """Numbers of containers, looked at five times a second, that end `rate_of(n)` inputs per second."""
    history, live, finished, counts = History(-1000.0), 0, 0.0, []
    for step in range(round(seconds * 5)):
        now = step * 0.2
        sample = Sample(at=now, inputs=inputs, running=live, ready=live, finished=finished)
        live = decide(sample, history, a_situation(live), now).count
        counts.append(live)
        finished += 0.2 * rate_of(live)
    return counts


def test_inputs_that_take_long_have_a_hundred_containers_within_a_second_and_a_half() -> None:
    assert grown(lambda n: 0.0, 1.6) == [1, 1, 1, 4, 16, 64, 256, 1000]


def a_pool_whose_call_took(seconds: float, calls: int = 1) -> History:
    """Calls one after the other, and then nothing."""
    history, now, finished = History(-1000.0), 0.0, 0.0
    for _ in range(calls):
        until = now + seconds
        while now < until:
            decide(Sample(at=now, inputs=1, running=1, ready=1, finished=finished), history, a_situation(1), now)
            now += 0.2
        finished += 1
    for _ in range(10):
        decide(Sample(at=now, inputs=0, ready=0, finished=finished), history, a_situation(0), now)
        now += 0.2
    return history


def steps(history: History, inputs: int, since: float = 100.0) -> list[int]:
    """From zero, each step there at the next look."""
    live, counts = 0, []
    for step in range(5):
        now = since + step * 0.2
        live = decide(Sample(at=now, inputs=inputs, running=live, ready=live, finished=1.0), history, EMPTY, now).count
        counts.append(live)
    return counts


def test_a_pool_whose_calls_took_long_before_begins_with_many() -> None:
    assert steps(a_pool_whose_call_took(3.0), 12) == [12, 12, 12, 12, 12]
    assert steps(a_pool_whose_call_took(3.0), 500) == [16, 16, 16, 64, 256]  # beyond it is measured that none has ended
    assert steps(History(-1000.0), 500) == [1, 1, 1, 4, 16]


def steps_as_they_start(history: History, finished: Callable[[int], float]) -> list[int]:
    """From zero for 500 inputs; a container is ready, and runs one, a while after it was decided on: four a look."""
    ready, desired, counts = 0, 0, []
    for step in range(8):
        now = 100.0 + step * 0.2
        seen = Sample(at=now, inputs=500, running=ready, ready=ready, starting=desired - ready, finished=finished(step))
        desired = decide(seen, history, a_situation(desired), now).count
        counts.append(desired)
        ready = min(desired, ready + 4)
    return counts


def test_long_calls_need_not_wait_for_containers_to_be_there_before_there_are_more() -> None:
    """A figure would wait until no container starts any more; these are known to take long, and none has ended."""
    counts = steps_as_they_start(a_pool_whose_call_took(3.0), lambda _: 1.0)
    assert counts == [16, 16, 16, 64, 256, 500, 500, 500]


def test_calls_that_took_long_before_and_end_now_are_measured_first() -> None:
    counts = steps_as_they_start(a_pool_whose_call_took(3.0), lambda step: 1.0 + 4 * step)
    assert counts[:5] == [16, 16, 16, 16, 16]


def test_a_pool_whose_calls_were_short_or_are_forgotten_begins_with_one() -> None:
    assert steps(a_pool_whose_call_took(0.4, calls=9), 50)[0] == 1
    assert steps(a_pool_whose_call_took(3.0), 50, since=7200.0)[0] == 1


def test_calls_that_are_short_now_or_mostly_are_measured_like_others() -> None:
    history = a_pool_whose_call_took(3.0)
    assert history.work.lasting(10.0)
    for step in range(4):  # one each 50 ms, told once a second; none waits
        decide(
            Sample(at=10.0 + step, inputs=1, running=1, ready=1, finished=1 + 20.0 * step), history, EMPTY, 10.0 + step
        )
    assert not history.work.lasting(14.0)


def test_calls_that_end_together_are_as_long_as_they_were() -> None:
    history = a_pool_whose_call_took(3.0)
    for step, (running, finished) in enumerate(((20, 1), (20, 1), (20, 1), (0, 21), (0, 21))):
        at = 10.0 + step
        decide(Sample(at=at, inputs=running, running=running, ready=20, finished=finished), history, EMPTY, at)
    assert history.work.lasting(15.0)


def test_no_ops_on_a_small_machine_get_no_more_containers_than_make_them_faster() -> None:
    assert max(grown(lambda n: 900.0 if n == 1 else 1500.0, 10.0)) <= 4


def test_short_inputs_that_use_the_whole_processor_stop_at_the_first_growth_without_gain() -> None:
    assert max(grown(lambda n: min(n, 2) * 50.0, 10.0)) <= 8


def test_short_inputs_on_a_large_fleet_grow_until_their_queue_is_done_in_a_second() -> None:
    counts = grown(lambda n: n * 10.0, 10.0)
    assert counts[-1] == 100
    assert counts[15] == 100


def test_short_inputs_get_no_more_containers_while_the_last_ones_are_starting() -> None:
    history = History(-1000.0)
    for tick in range(5):
        sample = Sample(at=tick * 0.2, inputs=900, ready=2, running=2, finished=40.0 * tick)
        decision = decide(sample, history, a_situation(2), sample.at)
    assert decision.count == 5
    for tick in range(5, 10):
        sample = Sample(at=tick * 0.2, inputs=900, ready=2, starting=3, running=2, finished=40.0 * tick)
        assert decide(sample, history, a_situation(5), sample.at).count == 5


def test_while_the_first_container_starts_no_more_are_wanted_for_a_second() -> None:
    history, counts = History(0.0), []
    for step in range(9):
        sample = Sample(at=step * 0.2, inputs=500, ready=0, starting=1)
        counts.append(decide(sample, history, a_situation(1), sample.at).count)
    assert counts == [1, 1, 1, 1, 1, 4, 4, 4, 4]


def test_a_few_more_are_started_without_waiting_for_any_figure() -> None:
    history = History(0.0)
    assert decide(Sample(at=0.1, inputs=3, starting=1), history, a_situation(1), 0.1).count == 3
    assert decide(Sample(at=0.3, inputs=2, ready=1, running=1, finished=0.0), history, a_situation(1), 0.3).count == 2


def test_growth_without_any_figures_doubles_with_each_step() -> None:
    counts = [1]
    while counts[-1] < 100:
        counts.append(decided(a_sample(5000, ready=counts[-1])).count)
    assert counts == [1, 4, 8, 16, 32, 64, 128]


def test_while_nodes_are_full_only_a_few_more_are_wanted_than_there_are() -> None:
    assert decided(a_sample(5000, ready=16), a_situation(19, no_room=True)).count == 19


def test_containers_that_are_starting_count_as_there() -> None:
    assert decided(a_sample(10, ready=1, starting=9)).count == 10


def test_min_and_max_bound_the_need() -> None:
    assert decided(a_sample(0), a_situation(min_containers=2)).count == 2
    assert decided(a_sample(50, ready=40), a_situation(max_containers=10)).count == 10


def test_a_pool_at_work_gets_its_buffer_and_an_idle_one_does_not() -> None:
    assert decided(a_sample(3, ready=3), a_situation(buffer_containers=2)).count == 5
    assert decided(a_sample(0), a_situation(buffer_containers=2)).count == 0


def test_a_stopped_app_gets_nothing_at_once() -> None:
    assert decided(a_sample(7, ready=4, running=4), a_situation(4, stopped=True, min_containers=2)).count == 0


def test_a_retired_version_ends_what_it_has_and_then_goes_at_once() -> None:
    retired = a_situation(4, retired=True, min_containers=2, buffer_containers=1)
    assert decided(a_sample(3, ready=4, running=3), retired).count == 3
    assert decided(a_sample(0, ready=4), retired).count == 0


def test_a_pool_whose_containers_do_not_start_gets_no_more_of_them() -> None:
    assert decided(a_sample(50, ready=0, starting=1), a_situation(1, failing=True)).count == 1
    assert decided(a_sample(50, ready=3), a_situation(3, failing=True)).count == 3


def test_what_is_wanted_and_not_placed_yet_stays_wanted_as_long_as_it_is_needed() -> None:
    assert decided(a_sample(50, ready=4), a_situation(30, no_room=True)).count == 30
    assert decided(a_sample(6, ready=4), a_situation(30, no_room=True)).count == 6


def test_the_reason_names_every_bound() -> None:
    decision = decided(a_sample(50, ready=4, running=4), a_situation(4, max_containers=6))
    assert decision.reason == "50 inputs, 4 running; 8 in this step; max_containers 6"


def test_a_queue_that_is_done_in_a_second_starts_nothing_more() -> None:
    history = History(-10_000)
    for tick in range(10):
        sample = replace(a_sample(900, ready=2, running=2), at=tick * 0.2, finished=1200.0 * tick * 0.2)
        decision = decide(sample, history, a_situation(2), sample.at)
    assert decision.count == 2
    assert decision.reason == "900 inputs, 2 running; 1200 per second by 2"


def test_a_queue_that_takes_longer_than_a_second_starts_more() -> None:
    history = History(-10_000)
    for tick in range(10):
        sample = replace(a_sample(900, ready=2, running=2), at=tick * 0.2, finished=20.0 * tick * 0.2)
        decision = decide(sample, history, a_situation(2), sample.at)
    assert decision.count == 5


# --- stories ---------------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """A pool whose containers are ready at the next tick, and the autoscaler that looks at it every second."""

    policy: ScalingPolicy = field(default_factory=lambda: ScalingPolicy(scaledown_window_s=60))
    now: float = 0.0
    count: int = 0
    changes: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = History(self.now)

    def tick(self, inputs: int | None, *, heard: bool = True) -> int:
        """One second with that many inputs."""
        running = min(inputs or 0, self.count)
        sample = Sample(at=self.now, inputs=inputs, running=running, ready=self.count, heard=heard)
        decision = decide(sample, self.history, Situation(policy=self.policy, desired=self.count), self.now)
        if decision.count != self.count:
            self.changes.append((self.now, decision.count))
        self.count = decision.count
        self.now += 1.0
        return self.count

    def during(self, seconds: int, inputs: int | None, **given: bool) -> list[int]:
        """Many ticks with the same load."""
        return [self.tick(inputs, **given) for _ in range(seconds)]


def test_to_zero_after_the_window_and_back_at_the_first_input() -> None:
    story = Story()
    assert story.during(5, 3) == [1, 3, 3, 3, 3]
    idle = story.during(65, 0)
    assert idle[58] == 3
    assert idle[60:] == [0] * 5
    assert story.tick(1) == 1


def test_constant_load_changes_nothing_once_it_is_served() -> None:
    story = Story()
    story.during(10, 12)
    story.changes.clear()
    story.during(600, 12)
    assert story.changes == []


def test_load_that_swings_faster_than_the_window_does_not_make_containers_come_and_go() -> None:
    story = Story()
    story.during(10, 8)
    story.changes.clear()
    for _ in range(40):
        story.during(7, 0)
        story.during(7, 8)
    assert story.changes == []


def test_a_step_is_followed_without_overshoot() -> None:
    story = Story()
    story.during(5, 2)
    assert max(story.during(10, 40)) == 40
    assert story.count == 40


def test_while_the_queue_cannot_be_asked_everything_stays() -> None:
    story = Story()
    story.during(5, 6)
    assert story.during(300, None) == [6] * 300


def test_while_a_node_is_not_heard_nothing_is_taken_away_but_more_may_come() -> None:
    story = Story()
    story.during(5, 6)
    assert story.during(300, 0, heard=False) == [6] * 300
    assert story.tick(8, heard=False) == 8


def test_a_restarted_autoscaler_ends_nothing_before_it_has_seen_a_whole_window() -> None:
    story = Story()
    story.during(5, 6)
    story.history = History(story.now)
    assert story.during(60, 0) == [6] * 60
    assert story.tick(0) == 0


def test_a_smaller_need_is_followed_when_the_window_has_passed() -> None:
    story = Story()
    story.during(5, 10)
    story.during(59, 3)
    assert story.count == 10
    story.during(3, 3)
    assert story.count == 3


def test_containers_that_could_not_be_placed_are_no_longer_wanted_when_the_need_is_over() -> None:
    history, situation = History(-1000), a_situation(20)
    for tick in range(5):
        decide(Sample(at=float(tick), inputs=50, ready=4, running=4), history, situation, float(tick))
    over = decide(Sample(at=5.0, inputs=0, ready=4), history, situation, 5.0)
    assert over.count == 4


# --- properties ------------------------------------------------------------------------------------------------------

policies = st.builds(
    lambda least, more, buffer, target: ScalingPolicy(
        min_containers=least,
        max_containers=None if more is None else max(1, least + more),
        buffer_containers=buffer,
        max_inputs=target,
        target_inputs=target,
        scaledown_window_s=10,
    ),
    st.integers(0, 5),
    st.none() | st.integers(0, 20),
    st.integers(0, 4),
    st.integers(1, 8),
)
samples = st.builds(
    Sample,
    at=st.just(0.0),
    inputs=st.none() | st.integers(0, 10_000),
    running=st.integers(0, 50),
    ready=st.integers(0, 50),
    starting=st.integers(0, 50),
    finished=st.none() | st.floats(0, 1e6),
    heard=st.booleans(),
)
situations = st.builds(
    Situation,
    policy=policies,
    desired=st.integers(0, 100),
    stopped=st.booleans(),
    retired=st.booleans(),
    failing=st.booleans(),
)
tracks = st.lists(st.tuples(samples, st.floats(0.2, 3.0)), min_size=1, max_size=15)


@given(tracks, situations)
def test_every_decision_keeps_its_bounds(track: list[tuple[Sample, float]], situation: Situation) -> None:
    history, now = History(0.0), 0.0
    for sample, pause_s in track:
        now += pause_s
        decision = decide(replace(sample, at=now), history, situation, now)
        policy = situation.policy
        assert decision.reason
        assert decision.count >= 0
        if situation.stopped:
            assert decision.count == 0
            continue
        held = decision.reason.startswith("unchanged")
        if policy.max_containers is not None and not held:
            assert decision.count <= policy.max_containers
        if not situation.retired and not situation.failing:
            assert decision.count >= policy.min_containers
        if (sample.inputs is None or not sample.heard) and not situation.retired:
            assert decision.count >= min(situation.desired, policy.max_containers or situation.desired) or held
        if sample.inputs and not situation.failing and not held:
            assert decision.count >= 1
        if not held:
            assert decision.count <= max(
                4 * sample.live,
                sample.live + 3,
                situation.desired,
                0 if situation.retired else policy.min_containers,
            )


@given(samples, situations)
def test_missing_data_never_takes_a_container_away(sample: Sample, situation: Situation) -> None:
    blind = replace(sample, inputs=None)
    if not situation.stopped:
        assert decided(blind, situation).count >= situation.desired


@given(st.integers(1, 400), st.integers(1, 8))
def test_a_load_that_stays_is_served_within_ten_steps(inputs: int, target: int) -> None:
    situation = a_situation(max_inputs=target, target_inputs=target)
    history, live = History(-1000), 0
    for step in range(10):
        sample = Sample(at=step * 0.2, inputs=inputs, ready=live, running=min(inputs, live * target))
        live = decide(sample, history, situation, sample.at).count
    assert live == -(-inputs // target)
