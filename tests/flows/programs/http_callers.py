"""What test_http_callers.py deploys under the name `callers`; run as a program it calls the class with the SDK."""

import os
import time
from pathlib import Path

import squall

app = squall.App("callers")


class TooMuch(Exception):
    pass


@app.function()
def echo(*args, **kwargs):
    return {"args": args, "kwargs": kwargs}


@app.function()
def double(x, plus=0):
    return x * 2 + plus


@app.function()
def fail(what):
    raise TooMuch(what)


@app.function()
def awkward(what):
    return {"set": {1}, "nan": float("nan"), "object": Path("/"), "tuple key": {(1, 2): 3}}[what]


@app.function()
def items(n, fails=False):
    for number in range(n):
        yield {"n": number}
    if fails:
        raise LookupError("no more")


@app.function(timeout=1)
def slow():
    time.sleep(30)


@app.function()
def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


@app.cls()
class Counter:
    start: int = squall.parameter(default=0)
    key: bytes = squall.parameter(default=b"")

    @squall.enter()
    def begin(self):
        self.value = self.start

    @squall.method()
    def step(self):
        self.value += 1
        return {"value": self.value, "key": list(self.key)}


if __name__ == "__main__":
    Known = squall.Cls.from_name("callers", "Counter")
    print(Known().step.remote()["value"])
    print(Known(start=40, key=b"\x00\xff").step.remote()["value"])
