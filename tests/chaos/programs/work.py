"""What chaos tests run while they kill things. Every execution leaves a line in a file, so that none goes unseen."""

import os
import time

import squall

app = squall.App("chaos")


def mark(path, text):
    """Append one line; O_APPEND makes lines of several processes come whole."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def hold_until(gate):
    """Stay in the middle of the call until the test opens the gate."""
    while not os.path.exists(gate):
        time.sleep(0.005)


@app.function(timeout=120, max_containers=6)
def work(effects, gate, value):
    mark(effects, f"started {value} {os.getpid()}")
    hold_until(gate)
    mark(effects, f"finished {value} {os.getpid()}")
    return value * value


@app.function(timeout=120)
def quick(value):
    return value + 1


@app.function(timeout=120, max_containers=1)
def cold(value):
    """Of this one no container is running when the test calls it."""
    return value * 3


@app.function(timeout=120, max_containers=1)
def cold_too(value):
    return value * 5


@app.function(timeout=120, max_containers=1)
def cold_third(value):
    return value * 7


@app.function(timeout=120, max_containers=4)
def evaluate(effects, value):
    """One input of the big fan-out: a little work, one line."""
    mark(effects, value)
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass
    return value, value * value


@app.function(timeout=120, max_containers=2)
def stream(effects, gate, n):
    mark(effects, "started")
    for i in range(n):
        if i == n // 2:
            hold_until(gate)
        yield i


@app.function(timeout=120, max_containers=4)
def large(effects, gate, value):
    """Its result goes through the blob store."""
    mark(effects, f"started {value} {os.getpid()}")
    hold_until(gate)
    mark(effects, f"finished {value} {os.getpid()}")
    return bytes([value]) * 300_000


@app.function(timeout=120, max_containers=4, retries=squall.Retries(max_retries=1, initial_delay=0.0))
def failing(effects, gate, value):
    """Raises whenever it runs: once, and once more."""
    mark(effects, f"started {value} {os.getpid()}")
    hold_until(gate)
    mark(effects, f"finished {value} {os.getpid()}")
    raise ValueError(value)


@app.cls(timeout=120, max_containers=1)
class Fresh:
    """A pool of its own for each number: without a container when it is called for the first time."""

    number: int = squall.parameter()

    @squall.method()
    def run(self, effects, value):
        mark(effects, f"started {value} {os.getpid()}")
        mark(effects, f"finished {value} {os.getpid()}")
        return value * self.number


@app.function(timeout=14, max_containers=24, cpu=0.0625)
def turns(folder, value, first):
    """Each execution waits for a gate of its own; `first` says what the first one does then: return, raise or stay."""
    turn = 0
    while True:
        try:
            os.close(os.open(f"{folder}/turn-{value}-{turn}", os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            turn += 1
    mark(f"{folder}/effects", f"started {value} {os.getpid()} {turn}")
    hold_until(f"{folder}/gate-{'never' if turn == 0 and first == 'stay' else turn}")
    mark(f"{folder}/effects", f"finished {value} {os.getpid()} {turn}")
    if turn == 0 and first == "raise":
        raise ValueError(value)
    return turn
