"""A program as users write it, with one function for each thing that flow tests look at. Effects go to files."""

import asyncio
import hashlib
import os
import sys
import time

import squall

app = squall.App("surface")


def mark(path, text):
    """Append one line; O_APPEND makes lines of several processes come whole."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def lines(path):
    with open(path) as file:
        return file.read().splitlines()


def wait_for(path):
    """Until the test has made that file."""
    while not os.path.exists(path):
        time.sleep(0.005)


@app.function()
def square(x):
    return x * x


@app.function()
def add(a, b=10):
    return a + b


@app.function()
async def square_async(x):
    await asyncio.sleep(0)
    return x * x


@app.function()
def speak(text):
    print(text)
    print(text.upper(), file=sys.stderr)
    return len(text)


@app.function()
def where():
    return {"pid": os.getpid(), "parent": os.getppid()}


@app.function()
def count_to(n):
    yield from range(n)


@app.function()
async def count_to_async(n):
    for i in range(n):
        yield i


@app.function()
def count_then_fail(n):
    yield from range(n)
    raise LookupError(f"no item {n}")


@app.function()
def divide(a, b):
    return a / b


@app.function()
def outer(n):
    return sum(square.map(range(n))) + add.remote(1, 2)


@app.function()
def descend(depth):
    return 0 if depth == 0 else 1 + descend.remote(depth - 1)


@app.function()
@squall.concurrent(max_inputs=8)
def meet(path, wanted):
    """Returns once that many inputs are in here together."""
    mark(path, os.getpid())
    until = time.monotonic() + 20
    while len(lines(path)) < wanted:
        if time.monotonic() > until:
            raise RuntimeError("the others did not come")
        time.sleep(0.005)
    return os.getpid()


@app.function(retries=squall.Retries(max_retries=3, initial_delay=0.0, backoff_coefficient=1.0))
def flaky(path, failures):
    mark(path, time.time())
    tries = len(lines(path))
    if tries <= failures:
        raise ValueError(f"try {tries}")
    return tries


@app.function(retries=squall.Retries(max_retries=2, initial_delay=1.0, backoff_coefficient=2.0))
def always_fails(path):
    mark(path, time.time())
    raise ValueError("never works")


@app.function(timeout=1, retries=squall.Retries(max_retries=1, initial_delay=0.0))
def too_slow(path):
    mark(path, "started")
    try:
        time.sleep(60)
    finally:
        mark(path, "left")


@app.function(timeout=1)
def stubborn(path):
    """Does not end when it is interrupted."""
    mark(path, os.getpid())
    while True:
        try:
            time.sleep(60)
        except BaseException:  # noqa: BLE001 — that is the point
            mark(path, "interrupted")


@app.function(max_containers=1, timeout=120)
def hold(path, gate, value):
    """In the middle of a call until the gate opens."""
    mark(path, f"started {value}")
    wait_for(gate)
    mark(path, f"finished {value}")
    return value


@app.function(cpu=(os.cpu_count() or 1) / 2)
def meet_apart(path, wanted):
    """The same where one of two agents, which share the cores, has no room for two containers."""
    return meet.local(path, wanted)


@app.function(cpu=(os.cpu_count() or 1) / 2)
def half_of_the_machine(seconds):
    time.sleep(seconds)
    return os.getpid()


@app.function(cpu=(os.cpu_count() or 1) / 2)
def the_other_half():
    return "got room"


@app.function(timeout=120)
def digest(data):
    return hashlib.sha256(data).hexdigest(), len(data)


@app.function(timeout=120)
def blob(size):
    return b"\x5a" * size


@app.function(scaledown_window=2)
def shortly():
    return os.getpid()


@app.cls()
class Counter:
    start: int = squall.parameter(default=0)
    path: str = squall.parameter(default="")

    @squall.enter()
    def begin(self):
        self.value = self.start
        if self.path:
            mark(self.path, f"enter {os.getpid()}")

    @squall.method()
    def more(self, by=1):
        self.value += by
        return self.value

    @squall.method()
    def down(self):
        yield from range(self.start, 0, -1)

    @squall.exit()
    def end(self):
        if self.path:
            mark(self.path, f"exit {os.getpid()}")
