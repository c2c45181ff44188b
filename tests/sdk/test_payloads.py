"""Values and bytes: what is pickled how, by reference or by value, and with how much memory."""

from __future__ import annotations

import dataclasses
import json
import pickle
import pickletools
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squall import exception, payload
from squall.connection import FileBody
from squall.spec import INLINE_LIMIT_BYTES

SRC = Path(__file__).resolve().parents[2] / "sdk" / "src"

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.sets(st.integers())
    ),
)


@dataclasses.dataclass
class Point:
    """A class of an importable module."""

    x: int
    y: int


class Stubborn:
    """Refuses to be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("never")


class Broken:
    """Can be pickled but not loaded."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def body_of(encoded: payload.Payload) -> bytes:
    if isinstance(encoded.body, FileBody):
        encoded.body.file.seek(0)
        return encoded.body.file.read()
    return encoded.body


@given(plain_values)
@settings(max_examples=50, deadline=None)
def test_plain_values_come_back_equal(value: Any) -> None:
    assert payload.decode("pickle", body_of(payload.encode(value))) == value


def test_importable_classes_go_by_reference_without_cloudpickle() -> None:
    data = body_of(payload.encode(Point(1, 2)))
    assert b"cloudpickle" not in data
    assert payload.decode("pickle", data) == Point(1, 2)


def test_the_protocol_is_one_that_every_python_reads() -> None:
    assert next(pickletools.genops(body_of(payload.encode([1]))))[1] == 4


def test_lambdas_and_nested_classes_go_by_value() -> None:
    class Nested:
        value = 7

    offset = 5
    function, made = payload.decode("pickle", body_of(payload.encode((lambda x: x + offset, Nested()))))
    assert (function(1), made.value) == (6, 7)


def test_what_cannot_be_pickled_raises_its_own_reason() -> None:
    with pytest.raises(exception.SerializationError, match=r"argument b of f.*Stubborn.*never"):
        payload.encode_arguments((1, Stubborn()), {}, None, lambda: ["a", "b"], "f")
    with pytest.raises(exception.SerializationError, match="argument number 2"):
        payload.encode_arguments((1, Stubborn()), {}, None, lambda: ["a"], "f")
    with pytest.raises(exception.SerializationError, match="argument key"):
        payload.encode_arguments((), {"key": Stubborn()}, None, list, "f")


def test_what_cannot_be_loaded_says_why() -> None:
    with pytest.raises(exception.DeserializationError, match="not a number"):
        payload.decode("pickle", pickle.dumps(Broken()))
    with pytest.raises(exception.DeserializationError, match="a_module_that_is_not_here"):
        payload.decode("pickle", b"ca_module_that_is_not_here\nX\n.")
    with pytest.raises(exception.DeserializationError, match="unknown encoding"):
        payload.decode("smoke signals", b"")


def test_results_of_other_languages_are_read() -> None:
    assert payload.decode("json", json.dumps({"a": [1]}).encode()) == {"a": [1]}
    assert payload.decode("msgpack", msgpack.packb({"a": b"x"})) == {"a": b"x"}


@pytest.mark.parametrize("size", [0, INLINE_LIMIT_BYTES - 100, INLINE_LIMIT_BYTES + 1, payload.MEMORY_BYTES + 1])
def test_small_values_travel_inline_and_large_ones_by_their_hash(size: int) -> None:
    encoded = payload.encode(bytes(size))
    assert (encoded.inline is not None) == (size < INLINE_LIMIT_BYTES)
    assert bool(encoded.sha256) == (size > INLINE_LIMIT_BYTES)
    assert isinstance(encoded.body, FileBody) == (size > payload.MEMORY_BYTES)
    assert payload.decode("pickle", body_of(encoded)) == bytes(size)
    encoded.close()


@pytest.mark.slow
def test_a_large_value_is_encoded_and_decoded_without_copies_of_it() -> None:
    size = 64 * 1024 * 1024
    value = bytes(size)
    tracemalloc.start()
    try:
        encoded = payload.encode(((value,), {}))
        encoding_peak = tracemalloc.get_traced_memory()[1]
        assert isinstance(encoded.body, FileBody)
        tracemalloc.reset_peak()
        again = payload.decode_file("pickle", encoded.body.file)
        decoding_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert again == ((value,), {})
    assert encoding_peak < size // 8
    assert decoding_peak < size + size // 8
    encoded.close()


SCRIPT = """
import sys
from squall import payload

class Thing:
    class Inner:
        pass
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(other) is type(self) and other.x == self.x
    __hash__ = None

def helper(x): return x + 1

if __name__ == "__main__":
    value = (Thing(5), Thing.Inner, helper, lambda x: helper(x))
    encoded = payload.encode(value, payload.script_module() if sys.argv[1] == "known" else None)
    sys.stdout.buffer.write(encoded.body)
"""

READER = """
import sys, pickle
data = sys.stdin.buffer.read()
thing, inner, helper, function = pickle.loads(data)
import script
print(type(thing) is script.Thing, inner is script.Thing.Inner, helper is script.helper, function(1), thing.x)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("known", "expected"), [("known", "True True True 2 5"), ("unknown", "False False False 2 5")])
def test_what_a_script_defines_goes_by_reference_where_the_script_is(tmp_path: Path, known: str, expected: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {"PYTHONPATH": f"{SRC}:{tmp_path}"}
    writer = [sys.executable, str(tmp_path / "script.py"), known]
    data = subprocess.run(writer, env=environment, capture_output=True, check=True, timeout=60).stdout
    reader = [sys.executable, "-c", READER]
    answer = subprocess.run(reader, env=environment, input=data, capture_output=True, check=False, timeout=60)
    assert answer.stdout.decode().strip() == expected, answer.stderr.decode()
