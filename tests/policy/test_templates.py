"""Which templates may be forked, and who shares one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.spec import CodeRef, FunctionSpec, GpuRequest, Resources
from squall_gpu_agent.policy.templates import Fork, Seen, StartPlainly, TemplateReport, judge, template_key, wanted

SAFE = TemplateReport(threads=("MainThread",), descriptors=("/data/model.bin", "/dev/null"), children=0)
SPEC = FunctionSpec(name="f", code=CodeRef(bundle_sha256="b", module="app", qualname="f"))


def test_one_thread_and_plain_files_may_be_forked() -> None:
    assert judge(SAFE) == Fork()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": ("MainThread", "pool-1", "pool-2")}, "2 threads running (pool-1, pool-2)"),
        ({"threads": ()}, "threads"),
        ({"descriptors": ("socket:[12]",)}, "socket:[12]"),
        ({"descriptors": ("/dev/nvidia0",)}, "/dev/nvidia0"),
        ({"descriptors": ("anon_inode:[eventpoll]",)}, "eventpoll"),
        ({"descriptors": ("pipe:[1]", "pipe:[2]", "pipe:[3]", "pipe:[4]")}, "and 1 more"),
        ({"descriptors": ("/dev/dri/renderD128",)}, "/dev/dri/renderD128"),
        ({"shared_memory": ("/dev/shm/sem.x1 (deleted)",)}, "all forks would write to (/dev/shm/sem.x1 (deleted))"),
        ({"shared_memory": ("/dev/zero (deleted)",)}, "all forks would write to"),
        ({"children": 1}, "1 child process running"),
        ({"children": 2}, "2 child processes running"),
    ],
)
def test_whatever_forks_would_share_or_miss_is_the_reason(change: dict[str, object], words: str) -> None:
    verdict = judge(replace(SAFE, **change))  # type: ignore[arg-type]
    assert isinstance(verdict, StartPlainly)
    assert words in verdict.reason


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4), st.integers(0, 3))
def test_a_fork_never_has_a_second_thread_or_a_child(threads: list[str], open_files: list[str], children: int) -> None:
    verdict = judge(TemplateReport(threads=tuple(threads), descriptors=tuple(open_files), children=children))
    if verdict == Fork():
        assert len(threads) == 1
        assert children == 0


def test_a_file_that_stays_may_be_mapped() -> None:
    assert judge(replace(SAFE, shared_memory=("/data/index.bin",))) == Fork()


def test_the_reason_names_the_hooks_of_a_snapshot() -> None:
    verdict = judge(replace(SAFE, children=1), snapshot=True)
    assert isinstance(verdict, StartPlainly)
    assert verdict.reason.startswith("import or @enter(snap=True) left")


def test_a_function_can_turn_templates_off() -> None:
    assert wanted(SPEC) == Fork()
    assert isinstance(wanted(replace(SPEC, use_template=False)), StartPlainly)


def test_a_function_with_gpus_has_a_template_only_with_a_snapshot() -> None:
    with_gpu = replace(SPEC, resources=Resources(gpus=(GpuRequest("H100"),)))
    verdict = wanted(with_gpu)
    assert isinstance(verdict, StartPlainly)
    assert "enable_memory_snapshot=True" in verdict.reason
    assert wanted(replace(with_gpu, memory_snapshot=True)) == Fork()


def test_class_parameters_are_part_of_a_snapshot_only() -> None:
    assert key(params={"n": 1}) == key(params={"n": 2})
    with_snapshot = replace(SPEC, memory_snapshot=True)
    assert key(with_snapshot, params={"n": 1}) != key(with_snapshot, params={"n": 2})
    assert key(with_snapshot) != key()


def key(spec: FunctionSpec = SPEC, **other: object) -> str:
    values = {"app": "a", "function": "f", "image": "i", "env": {"A": "1"}, "env_version": "1", **other}
    return template_key(spec, Seen(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other", [{"app": "b"}, {"function": "g"}, {"image": "j"}, {"env": {"A": "2"}}, {"env_version": "2"}]
)
def test_containers_that_differ_in_what_import_sees_never_share_a_template(other: dict[str, object]) -> None:
    assert key(**other) != key()


def test_other_code_has_another_template() -> None:
    assert key(replace(SPEC, code=replace(SPEC.code, bundle_sha256="c"))) != key()
    assert key(replace(SPEC, name="renamed", timeout_s=5)) == key()
