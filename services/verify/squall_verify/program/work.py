"""What `squall verify` deploys and calls: one function for each way a call can go.

Every execution appends lines to the effects file. A line is written with one `write` to a file opened for appending, so
that lines of many processes come whole; they are what user code really did, whatever the platform says of it.
"""

import hashlib
import json
import os
import secrets
import time

import squall

EFFECTS = os.environ.get("VERIFY_EFFECTS", "")
VERSION = int(os.environ.get("VERIFY_VERSION", "1"))
HOG_CPU = float(os.environ.get("VERIFY_HOG_CPU", "0.5"))
"""Half of what one agent has."""
TICK_S = 0.1
PERIOD_S = 2

app = squall.App(
    "verify",
)
SAME = {
    "env": {"VERIFY_EFFECTS": EFFECTS, "VERIFY_VERSION": str(VERSION)},
    "cpu": 0.0625,
    "scaledown_window": 5,
}


class Wanted(Exception):
    """The plan wants this attempt to fail."""


class Execution:
    """One execution of one input, as the effects file knows it."""

    def __init__(self, function, op):
        from squall_runner import context

        current = context.current()
        self.about = {
            "call": current.call,
            "index": current.index,
            "attempt": current.attempt,
            "nonce": "nx-" + secrets.token_hex(8),
            "pid": os.getpid(),
            "op": op,
            "function": function,
            "version": VERSION,
        }
        self.write("start")

    def write(self, what):
        line = json.dumps({"what": what, "at": time.time(), **self.about}) + "\n"
        file = os.open(EFFECTS, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def work(self, seconds):
        """Stay busy with nothing for so long, and say so ten times a second."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(TICK_S, left))
            if seconds > TICK_S:
                self.write("tick")

    def end(self, **more):
        self.write("end")
        return {**self.about, **more}


def failures_before(job):
    """How often this job has raised on purpose; attempts that the platform lost do not count."""
    with open(EFFECTS + "." + job["op"], "a+") as file:
        file.seek(0)
        return len(file.read())


def count_failure(job):
    with open(EFFECTS + "." + job["op"], "a") as file:
        file.write("x")


@app.function(timeout=60, max_containers=4, **SAME)
def plain(job, number=0):
    execution = Execution("plain", job["op"])
    execution.work(job.get("s", 0))
    if number in job.get("bad", ()):
        execution.write("raise")
        raise Wanted(f"{job['op']} {number}")
    return execution.end(number=number)


@app.function(timeout=60, max_containers=3, retries=squall.Retries(max_retries=2, initial_delay=0.5), **SAME)
def flaky(job):
    execution = Execution("flaky", job["op"])
    execution.work(job.get("s", 0))
    if failures_before(job) < job["failures"]:
        count_failure(job)
        execution.write("raise")
        raise Wanted(job["op"])
    return execution.end()


@app.function(timeout=1, max_containers=2, **SAME)
def slow(job):
    execution = Execution("slow", job["op"])
    until = time.monotonic() + job["s"]
    while time.monotonic() < until:
        try:
            execution.work(until - time.monotonic())
        except BaseException:
            if not job.get("stubborn"):
                raise
    return execution.end()


@app.function(timeout=120, max_containers=6, **SAME)
def held(job):
    """Long enough to be cancelled, or to lose its agent, in its middle."""
    execution = Execution("held", job["op"])
    execution.work(job["s"])
    return execution.end()


@app.function(timeout=60, max_containers=1, **SAME)
def narrow(job):
    execution = Execution("narrow", job["op"])
    execution.work(job.get("s", 0))
    return execution.end()


@app.function(timeout=60, max_containers=2, **SAME)
def crowd(job):
    """Of this one more is asked than the gateways take."""
    execution = Execution("crowd", job["op"])
    execution.work(job["s"])
    return execution.end()


@app.function(timeout=60, **{**SAME, "cpu": HOG_CPU})
def hog(job, number=0):
    """Of this there is more than all machines can do at once."""
    execution = Execution("hog", job["op"])
    execution.work(job["s"])
    return execution.end(number=number)


@app.function(timeout=60, max_containers=1, **SAME)
def lone(job):
    return Execution("lone", job["op"]).end()


@app.function(timeout=60, max_containers=2, **SAME)
@squall.concurrent(max_inputs=4)
def many(job):
    execution = Execution("many", job["op"])
    execution.work(job.get("s", 0))
    return execution.end()


@app.function(timeout=60, max_containers=2, **SAME)
def bulky(job, data):
    execution = Execution("bulky", job["op"])
    digest = hashlib.sha256(data).hexdigest()
    return execution.end(digest=digest, data=data)


@app.function(timeout=60, max_containers=2, **SAME)
def stream(job):
    execution = Execution("stream", job["op"])
    for number in range(job["n"]):
        execution.work(job.get("s", 0))
        execution.write("yield")
        yield {**execution.about, "number": number}
    execution.write("end")


@app.function(timeout=120, max_containers=3, **SAME)
def outer(job):
    """Calls others from its container."""
    execution = Execution("outer", job["op"])
    inner = [plain.remote({"op": job["op"] + "/0"})]
    inner += plain.map([{"op": job["op"] + "/map"}] * job["n"], range(job["n"]))
    return execution.end(inner=[[each["call"], each["index"], each["nonce"]] for each in inner])


@app.function(timeout=60, max_containers=1, schedule=squall.Period(seconds=PERIOD_S), **SAME)
def ticked():
    """Called by nobody but its schedule."""
    return Execution("ticked", "tick/").end()


@app.function(timeout=60, max_containers=2, **SAME)
@squall.concurrent(max_inputs=4)
@squall.asgi_app()
def page():
    """Answers in pieces with what it was asked, and writes down that it was."""
    import asyncio

    async def answer(scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        nonce = scope["path"].rpartition("/")[2]
        write_web(nonce, scope["method"])
        told = {"nonce": nonce, "method": scope["method"], "digest": hashlib.sha256(body).hexdigest()}
        data = json.dumps({**told, "bytes": len(body)}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": data[:20], "more_body": True})
        await asyncio.sleep(float(scope["query_string"].partition(b"=")[2] or 0))
        await send({"type": "http.response.body", "body": data[20:]})

    return answer


def write_web(nonce, method):
    line = {"nonce": nonce, "at": time.time(), "method": method, "pid": os.getpid(), "version": VERSION}
    file = os.open(EFFECTS + ".web", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


@app.cls(timeout=60, max_containers=2, **SAME)
class Counter:
    start: int = squall.parameter(default=0)

    @squall.enter()
    def prepare(self):
        self.base = self.start

    @squall.method()
    def add(self, job):
        execution = Execution("Counter.add", job["op"])
        execution.work(job.get("s", 0))
        return execution.end(sum=self.base + job["x"])
