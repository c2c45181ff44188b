"""Every program in `examples/` through the real command: what a reader is told it prints, it prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sdk.cli.shell import Shell

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def user() -> Iterator[Shell]:
    shell = Shell()
    try:
        yield shell
        shell.nothing_left()
    finally:
        shell.remove()


@pytest.fixture(scope="module")
def served() -> Iterator[Shell]:
    """A platform for the programs that say nothing about how they get one."""
    shell = Shell()
    try:
        shell.squall("up", "--simulate-gpus", "H100:2,L4:4").ok()
        yield shell
        shell.squall("down").ok()
    finally:
        shell.remove()


def run(shell: Shell, name: str, *arguments: object) -> list[str]:
    """The lines that an example prints; at most those of its containers are in between."""
    return shell.squall("run", EXAMPLES / f"{name}.py", *arguments).ok().out.splitlines()


def test_quickstart(user: Shell) -> None:
    assert run(user, "quickstart") == ["49", "285"]


def test_quickstart_with_more(served: Shell) -> None:
    assert run(served, "quickstart", "--n", "100") == ["49", "328350"]


CALL_FORMS = """\
local: 3
remote: 3
remote of async: 4
remote_gen: [1, 2, 3, 4]
remote_gen of async: [1, 2, 3]
nested: 30
map: [11, 22, 33]
map with kwargs: [5, 6, 7]
map unordered: [1, 2, 3, 4, 5]
map of nothing: []
starmap: [3, 7]
for_each: None
map with exceptions: ['ValueError(0 is even)', 1, 'ValueError(2 is even)', 3]
exception: ValueError on purpose
first failure of a map: 2 is even
spawn: 42
from_id: 42
gather: [2, 3]
get with a timeout: not yet
cancel: CallCancelledError
method: 101
method with parameter: 8
method map: [7, 8, 9]
method generator: [1, 2, 3]
method local: 7
remote.aio: 3
remote_gen.aio: [1, 2, 3]
map.aio: [2, 3, 4]
starmap.aio: [3, 7]
for_each.aio: None
spawn.aio: 6
gather.aio: [2, 3]
together: [1, 2, 3, 4]
"""


def test_call_forms(served: Shell) -> None:
    lines = run(served, "call_forms")

    said = [line for line in lines if not line.startswith("counter of")]
    assert said == CALL_FORMS.splitlines()
    leaves = sorted(line for line in lines if line.startswith("counter of"))
    assert leaves == ["counter of 1 leaves", "counter of 100 leaves", "counter of 7 leaves"], "the @exit hooks"


def test_word_count(served: Shell) -> None:
    assert run(served, "word_count") == ["500 lines in 20 parts", "  1000 brown", "   500 quick", "   500 jumps"]


def test_evaluation_of_two_thousand_cases(served: Shell) -> None:
    summary, wrong = run(served, "evaluation")

    assert summary == "2000 cases, 85.7 % right"
    assert wrong == "wrong first about: 0+0, 7+7, 12+2"


def test_model_class(served: Shell) -> None:
    lines = run(served, "model_class")

    assert [line.split()[0] for line in lines if re.match(r"(english|german|french) ", line)] == [
        "english",
        "german",
        "french",
    ]
    assert any(line.startswith("60 requests in ") for line in lines)
    assert lines.count("model loaded") == lines.count("model unloaded") >= 1


def test_gpu_fallbacks(served: Shell) -> None:
    lines = run(served, "gpu_fallbacks")

    marks = [line for line in lines if line.startswith("its GPUs are simulated: sim-local-")]
    assert len(marks) >= 2
    assert [line for line in lines if line not in marks] == [
        "0 devices are needed to plan",
        "Why? Computed on 2 devices.",
        "12",
    ]


def test_flaky_service(served: Shell) -> None:
    assert run(served, "flaky_service") == [
        "order 0 after 1 attempt",
        "order 1 after 2 attempts",
        "order 2 after 3 attempts",
        "order 3 after 1 attempt",
        "order 4 after 2 attempts",
        "order 5 after 3 attempts",
        "given up: closed for ever",
    ]


def test_token_stream(served: Shell) -> None:
    text, count = run(served, "token_stream", "--prompt", "a b", "--tokens", "7")

    assert set(text.split()) <= {"a", "b"}
    assert len(text.split()) == 7
    assert count == "7 tokens"


def test_dynamic_batching(served: Shell) -> None:
    calls, first, alone = run(served, "dynamic_batching")

    made = re.fullmatch(r"64 texts in (\d+) calls of the model", calls)
    assert made
    assert 4 <= int(made[1]) < 64
    assert first == "the first vector: [3, 4, 2, 1, 2]"
    assert alone == "alone: [1, 1, 1, 1, 1]"


def test_parametrised_class(served: Shell) -> None:
    assert run(served, "parametrised_class") == [
        "de gut morgen",
        "fr bon matin",
        "loud ['BON', 'NUIT']",
        "large gut nacht",
    ]


def test_job_queue(served: Shell) -> None:
    assert run(served, "job_queue") == [
        "thumbnail done: thumbnail.png",
        "poster pending",
        "broken failed: there is nothing to render",
        "poster cancelled",
        "3 jobs: ['a.png', 'b.png', 'c.png']",
    ]


def test_a_package_that_is_only_in_the_image(served: Shell) -> None:
    assert run(served, "package_image") == ["123456789 bytes are 123.5 MB"]


def test_a_deployed_app_is_called_from_another_program(served: Shell) -> None:
    served.squall("deploy", EXAMPLES / "translator.py").ok()

    program = f"""\
        import runpy, sys
        sys.argv[1:] = ["guten", "abend"]
        runpy.run_path({str(EXAMPLES / "use_translator.py")!r}, run_name="__main__")
        """
    answer = served.python(program).ok()

    assert answer.out.splitlines() == ["good evening", "['good', 'evening']", "fc-...: good evening"]


def test_every_example_has_a_test() -> None:
    text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))

    assert [file.stem for file in EXAMPLES.glob("*.py") if file.stem not in text] == []
