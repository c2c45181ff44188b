"""Every program in `examples/` through the real command, on the platform in each of its forms: what a reader is told it
prints, it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import pytest
from tests.sdk.cli.shell import Ended, Shell

from squall_bus import BusForbidden

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FORMS: dict[str, tuple[str, ...]] = {
    "one-process": (),
    "processes": ("--processes",),
    "two-of-each": ("--processes", "--agents", "2", "--gateways", "2"),
}
PROGRAMS: dict[str, tuple[str, ...]] = {
    "package_image": (),  # first: its image takes longest
    "quickstart": ("--n", "100"),
    "call_forms": (),
    "word_count": (),
    "evaluation": (),
    "model_class": (),
    "gpu_fallbacks": (),
    "flaky_service": (),
    "token_stream": ("--prompt", "a b", "--tokens", "7"),
    "dynamic_batching": (),
    "parametrised_class": (),
    "job_queue": (),
    "batch_inference": (),
    "hyperparameter_sweep": (),
    "etl": (),
    "reinforcement_learning": (),
    "crawler": (),
    "first_answer_wins": (),
    "live_alarms": (),
    "pay_once": (),
    "parallel_sort": (),
    "secret_settings": (),
    "webhook_receiver": (),
    "heartbeat": (),
    "scatter_gather": (),
    "model_files": (),
    "mounted_weights": (),
    "snapshot_model": (),
}
"""What is run with `squall run`, and its arguments."""
AT_ONCE = 3


@dataclass
class Served:
    """A platform on which all examples run, several at once, as programs of several people do."""

    shell: Shell
    running: dict[str, Future[Ended]] = field(default_factory=dict)

    def begin(self, threads: ThreadPoolExecutor) -> None:
        """Run them all, through each gateway in turn."""
        state = json.loads((self.shell.home / "local" / "server.json").read_text())
        gateways = cycle([part["url"] for part in state["processes"] if part.get("url")] or [state["url"]])
        for name, arguments in PROGRAMS.items():
            words = ("run", EXAMPLES / f"{name}.py", *arguments)
            address = {"SQUALL_SERVER_URL": next(gateways), "SQUALL_TOKEN": state["token"]}
            self.running[name] = threads.submit(self.shell.squall, *words, **address)

    def lines(self, name: str) -> list[str]:
        """What an example printed; at most lines of its containers are in between."""
        return self.running[name].result().ok().out.splitlines()


@pytest.fixture(scope="module", params=FORMS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    shell = Shell()
    try:
        allowed = {"SQUALL_GATEWAY_WEBHOOK_ALLOWED": '["127.0.0.1"]'}
        shell.squall("up", *FORMS[request.param], "--simulate-gpus", "H100:2,L4:4", **allowed).ok()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            platform = Served(shell)
            platform.begin(threads)
            yield platform
        shell.squall("down").ok()
        logs = "".join(log.read_text(errors="replace") for log in (shell.home / "local").glob("*.log"))
        assert BusForbidden.code not in logs, "a service lacks a right on the bus"
        shell.nothing_left()
    finally:
        shell.remove()


def test_quickstart_without_a_server() -> None:
    shell = Shell()
    try:
        ran = shell.squall("run", EXAMPLES / "quickstart.py").ok()
        assert ran.out.splitlines() == ["49", "285"]
        shell.nothing_left()
    finally:
        shell.remove()


def test_quickstart(served: Served) -> None:
    assert served.lines("quickstart") == ["49", "328350"]


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


def test_call_forms(served: Served) -> None:
    lines = served.lines("call_forms")

    said = [line for line in lines if not line.startswith("counter of")]
    assert said == CALL_FORMS.splitlines()
    leaves = {line for line in lines if line.startswith("counter of")}
    assert leaves == {"counter of 1 leaves", "counter of 100 leaves", "counter of 7 leaves"}, "the @exit hooks"


def test_model_files(served: Served) -> None:
    assert served.lines("model_files") == ["predicted 7.0", "files: models/v1/weights.bin, models/v2/weights.bin"]


def test_snapshot_model(served: Served) -> None:
    first, *cold = served.lines("snapshot_model")
    assert first.startswith("first call, with the snapshot made for it: ")
    assert [line.partition(" s, ")[2] for line in cold] == ["forked from the loaded model"] * 3


def test_mounted_weights(served: Served) -> None:
    assert served.lines("mounted_weights") == [
        "predicted 7.0",
        "predicted 13.0",
        'weights: {"slope": 4.0, "offset": 1.0}',
        "the schedule has written its log",
    ]


def test_scatter_gather(served: Served) -> None:
    assert served.lines("scatter_gather") == ["primes below 1000: 168", "done by workers: 10 parts", "one leader"]


def test_heartbeat(served: Served) -> None:
    beats = served.lines("heartbeat")

    assert beats[-1] == "3 beats, each in a call of its own"


def test_webhook_receiver(served: Served) -> None:
    assert served.lines("webhook_receiver") == ["call.failed divide ZeroDivisionError", "call.succeeded divide "]


def test_secret_settings(served: Served) -> None:
    assert served.lines("secret_settings") == [
        "12.50 EUR in eu, with a key of 18 characters",
        "in another function: False",
    ]


def test_word_count(served: Served) -> None:
    assert served.lines("word_count") == ["500 lines in 20 parts", "  1000 brown", "   500 quick", "   500 jumps"]


def test_evaluation_of_two_thousand_cases(served: Served) -> None:
    summary, wrong = served.lines("evaluation")

    assert summary == "2000 cases, 85.7 % right"
    assert wrong == "wrong first about: 0+0, 7+7, 12+2"


def test_model_class(served: Served) -> None:
    lines = served.lines("model_class")

    assert [line.split()[0] for line in lines if re.match(r"(english|german|french) ", line)] == [
        "english",
        "german",
        "french",
    ]
    assert any(line.startswith("60 requests in ") for line in lines)
    # A second container that was still starting when the program ended is given up without its @exit hook.
    assert lines.count("model loaded") >= lines.count("model unloaded") >= 1


def test_gpu_fallbacks(served: Served) -> None:
    lines = served.lines("gpu_fallbacks")

    marks = [line for line in lines if line.startswith("its GPUs are simulated: sim-local-")]
    assert len(marks) >= 2
    assert [line for line in lines if line not in marks] == [
        "0 devices are needed to plan",
        "Why? Computed on 2 devices.",
        "12",
    ]


def test_flaky_service(served: Served) -> None:
    assert served.lines("flaky_service") == [
        "order 0 after 1 attempt",
        "order 1 after 2 attempts",
        "order 2 after 3 attempts",
        "order 3 after 1 attempt",
        "order 4 after 2 attempts",
        "order 5 after 3 attempts",
        "given up: closed for ever",
    ]


def test_token_stream(served: Served) -> None:
    text, count = served.lines("token_stream")

    assert set(text.split()) <= {"a", "b"}
    assert len(text.split()) == 7
    assert count == "7 tokens"


def test_dynamic_batching(served: Served) -> None:
    calls, first, alone = served.lines("dynamic_batching")

    made = re.fullmatch(r"64 texts in (\d+) calls of the model", calls)
    assert made
    assert 4 <= int(made[1]) < 64
    assert first == "the first vector: [3, 4, 2, 1, 2]"
    assert alone == "alone: [1, 1, 1, 1, 1]"


def test_parametrised_class(served: Served) -> None:
    assert served.lines("parametrised_class") == [
        "de gut morgen",
        "fr bon matin",
        "loud ['BON', 'NUIT']",
        "large gut nacht",
    ]


def test_job_queue(served: Served) -> None:
    assert served.lines("job_queue") == [
        "thumbnail done: thumbnail.png",
        "poster pending",
        "broken failed: there is nothing to render",
        "poster cancelled",
        "3 jobs: ['a.png', 'b.png', 'c.png']",
    ]


def test_batch_inference(served: Served) -> None:
    assert served.lines("batch_inference") == [
        "10000 rows in 20 parts by at most 4 containers: True",
        "5649 positive, 56.5 %",
    ]


def test_hyperparameter_sweep(served: Served) -> None:
    assert served.lines("hyperparameter_sweep") == [
        "24 trials",
        "best: rate 0.1, batches of 4, momentum 0.0",
        "loss 0.0095, slope 2.99",
        "11 trials learned nothing",
    ]


def test_etl_with_retries(served: Served) -> None:
    assert served.lines("etl") == [
        "23 pages loaded, 1 set aside",
        "c0 340.50",
        "c1 346.50",
        "c2 342.00",
        "c3 358.50",
        "page 10: could not convert string to float: 'n/a'",
    ]


def test_reinforcement_learning(served: Served) -> None:
    assert served.lines("reinforcement_learning") == [
        "generation 0: 40 episodes, mean reward 23.6",
        "generation 1: 40 episodes, mean reward 38.1",
        "generation 2: 40 episodes, mean reward 46.1",
        "generation 3: 40 episodes, mean reward 54.0",
        "improved: True",
    ]


def test_crawler(served: Served) -> None:
    assert served.lines("crawler") == ["200 pages in 6 waves of 1 3 9 27 81 79"]


def test_first_answer_wins(served: Served) -> None:
    few, found = served.lines("first_answer_wins")

    assert few == "found after a few of 2000 ranges: True"
    assert re.fullmatch(r"squall \d+ has the hash 000\.\.\.", found)


def test_live_alarms(served: Served) -> None:
    assert served.lines("live_alarms") == [
        "sensor 0: 0 alarms, first: none",
        "sensor 1: 11 alarms, first: reading 3 with 26.0 degrees",
        "sensor 2: 22 alarms, first: reading 1 with 25.5 degrees",
    ]


def test_pay_once(served: Served) -> None:
    assert served.lines("pay_once") == [
        "order-1: 19.99, booking 1 - one call: True",
        "order-2: 5.00, booking 2 - one call: True",
        "order-1 was another payment",
        "booked 24.99",
    ]


def test_parallel_sort(served: Served) -> None:
    assert served.lines("parallel_sort") == [
        "160000 numbers, 8 parts, 3 rounds of merging; nothing lost: True",
        "least 4341 greatest 999984193",
    ]


def test_a_package_that_is_only_in_the_image(served: Served) -> None:
    assert served.lines("package_image") == ["123456789 bytes are 123.5 MB"]


def test_a_deployed_app_is_called_from_another_program(served: Served) -> None:
    served.shell.squall("deploy", EXAMPLES / "translator.py").ok()

    program = f"""\
        import runpy, sys
        sys.argv[1:] = ["guten", "abend"]
        runpy.run_path({str(EXAMPLES / "use_translator.py")!r}, run_name="__main__")
        """
    answer = served.shell.python(program).ok()

    assert answer.out.splitlines() == ["good evening", "['good', 'evening']", "fc-...: good evening"]


def test_every_example_has_a_test() -> None:
    text = "".join(file.read_text() for file in Path(__file__).parents[1].rglob("test_*.py"))

    assert [file.stem for file in EXAMPLES.glob("*.py") if file.stem not in text] == []
