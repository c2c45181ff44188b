"""Which templates may be forked, and who shares one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.spec import CodeRef, FunctionSpec
from squall_gpu_agent.policy.templates import Fork, StartPlainly, TemplateReport, judge, template_key, wanted

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


def test_a_function_can_turn_templates_off() -> None:
    assert wanted(SPEC) == Fork()
    assert isinstance(wanted(replace(SPEC, use_template=False)), StartPlainly)


def key(spec: FunctionSpec = SPEC, **other: object) -> str:
    values = {"app": "a", "function": "f", "image": "i", "env": {"A": "1"}, "env_version": "1", **other}
    return template_key(spec, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other", [{"app": "b"}, {"function": "g"}, {"image": "j"}, {"env": {"A": "2"}}, {"env_version": "2"}]
)
def test_containers_that_differ_in_what_import_sees_never_share_a_template(other: dict[str, object]) -> None:
    assert key(**other) != key()


def test_other_code_has_another_template() -> None:
    assert key(replace(SPEC, code=replace(SPEC.code, bundle_sha256="c"))) != key()
    assert key(replace(SPEC, name="renamed", timeout_s=5)) == key()
