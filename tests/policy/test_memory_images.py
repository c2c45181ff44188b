"""Images of templates' memory: whose they are, which leave the disk, when a failed one is tried again."""

from __future__ import annotations

import pytest

from squall_gpu_agent.policy.memory_images import (
    MOST_FAILURES,
    SUPERSEDED_S,
    UNUSED_S,
    Failure,
    ImageOnDisk,
    failed,
    function_of,
    image_key,
    make_room,
    no_longer_wanted,
)

TERMS = {"network": True, "disk_mib": None}
Key = tuple[str, str, dict[str, object]]


def image(key: str, size: int = 10, used_at: float = 0.0, **more: object) -> ImageOnDisk:
    return ImageOnDisk(key=key, function="f", size=size, used_at=used_at, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        ("tp-2", "runsc 1", TERMS),
        ("tp-1", "runsc 2", TERMS),
        ("tp-1", "runsc 1", {**TERMS, "network": False}),
        ("tp-1", "runsc 1", {**TERMS, "disk_mib": 2048}),
    ],
)
def test_an_image_belongs_to_a_template_a_runsc_and_what_is_in_a_containers_memory(
    other: tuple[str, str, dict],
) -> None:
    assert image_key("tp-1", "runsc 1", TERMS) == image_key("tp-1", "runsc 1", dict(TERMS))
    assert image_key("tp-1", "runsc 1", TERMS) != image_key(*other)


def test_versions_of_a_function_supersede_each_other_and_no_others_do() -> None:
    assert function_of("a", "f", {"x": 1}) == function_of("a", "f", {"x": 1})
    assert len({function_of("a", "f", None), function_of("b", "f", None), function_of("a", "g", {"x": 1})}) == 3


def test_what_was_used_least_recently_leaves_first_and_only_as_much_as_is_needed() -> None:
    images = [image("new", used_at=3), image("old", used_at=1), image("middle", used_at=2)]
    assert make_room(images, limit=40, wanted=10) == []
    assert make_room(images, limit=35, wanted=10) == ["old"]
    assert make_room(images, limit=30, wanted=15) == ["old", "middle"]


def test_what_containers_were_restored_from_never_leaves() -> None:
    images = [image("used", used_at=1, users=1), image("idle", used_at=2)]
    assert make_room(images, limit=25, wanted=10) == ["idle"]
    assert make_room(images, limit=15, wanted=10) is None
    later = 10 * UNUSED_S
    assert no_longer_wanted([image("a", users=1, superseded=True), image("b", superseded=True)], later) == ["b"]


def test_one_of_an_old_version_leaves_soon_after_its_last_use_and_one_that_nobody_uses_after_a_day() -> None:
    images = [image("superseded", superseded=True), image("newest"), image("rolled-back", used_at=SUPERSEDED_S)]
    images[2].superseded = True
    assert no_longer_wanted(images, SUPERSEDED_S) == []
    assert no_longer_wanted(images, SUPERSEDED_S + 1) == ["superseded"]
    assert no_longer_wanted(images, UNUSED_S + 1) == ["superseded", "newest", "rolled-back"]


def test_a_failure_is_tried_again_after_a_minute_then_after_ten_then_never() -> None:
    failure: Failure | None = None
    pauses = []
    for _ in range(MOST_FAILURES):
        failure = failed(failure, "the disk is full", now=100.0)
        pauses.append(failure.until - 100.0)
    assert pauses == [60.0, 600.0, float("inf")]
    assert failed(None, "the disk is full", 0.0).words(15.0) == "the disk is full (tried again in 45 s)"
    assert failure is not None
    assert failure.words(100.0) == "the disk is full (3 times; it is not tried again)"
