"""A program with the ways of declaring work beside plain functions: batches, options, single-use containers, parts."""

import os
import time

import squall

app = squall.App("forms", tags={"kind": "test"})
part = squall.App("part", tags={"part": "yes"})


@app.function()
@squall.batched(max_batch_size=4, wait_ms=600_000)
def doubled(x):
    return [(2 * each, len(x)) for each in x]


@app.function(retries=squall.Retries(max_retries=3, initial_delay=0))
@squall.batched(max_batch_size=2, wait_ms=10)
async def flaky(path, text):
    """Fails at its first call, for all of the batch."""
    if not os.path.exists(path[0]):
        open(path[0], "w").close()
        raise ConnectionError("not yet")
    return text


@app.cls()
class Model:
    name: str = squall.parameter(default="m")

    @squall.batched(max_batch_size=3, wait_ms=600_000)
    def predict(self, x):
        return [f"{self.name}:{each}:{len(x)}" for each in x]


@app.function(timeout=60, env={"A": "1", "B": "1"}, max_containers=1)
def surroundings():
    return os.environ["SQUALL_CONTAINER_ID"], os.environ["A"], os.environ["B"]


@app.function(single_use_containers=True)
def once():
    return os.environ["SQUALL_CONTAINER_ID"]


@app.function()
def last_of(x):
    """Says after one input that it wants no more."""
    squall.experimental.stop_fetching_inputs()
    return os.environ["SQUALL_CONTAINER_ID"]


@app.function()
def fan_out(n):
    calls = [leaf.spawn(each) for each in range(n)]
    return leaf.remote(100), [call.object_id for call in calls]


@app.function()
def leaf(x):
    return x


@app.function()
def slow(seconds):
    time.sleep(seconds)


@part.function()
def of_part(x):
    return leaf.remote(x) + 1


app.include(part)


class Base:
    """Undecorated: its parameter, hooks and methods are inherited."""

    base: int = squall.parameter(default=10)

    @squall.enter()
    def first(self):
        self.entered = ["base"]

    @squall.method()
    def add(self, x):
        return self.base + x


@app.cls()
class Child(Base):
    @squall.enter()
    def second(self):
        self.entered.append("child")

    @squall.method()
    def through(self, x):
        """The other method here, and by a call of its own with the same parameters."""
        return self.entered, self.add.local(x), self.add.remote(x)

    @squall.method()
    def identity(self):
        return squall.is_local(), squall.current_function_call_id(), squall.current_input_id()
