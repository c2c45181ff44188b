"""A job queue: submit work now, keep its id, ask for the result later, from any program.

squall run examples/job_queue.py

Jobs go on without the program that started them. Deploy the app to keep it running: then a web server submits with
`squall.Function.from_name("job-queue", "render").spawn(...)`, answers with `object_id`, and looks with `from_id`.
"""

import time

import squall

app = squall.App("job-queue")


@app.function(retries=2, timeout=60)
def render(seconds: float, name: str) -> str:
    time.sleep(seconds)
    if name == "broken":
        raise ValueError("there is nothing to render")
    return f"{name}.png"


def submit(seconds: float, name: str) -> str:
    """The id of a new job: plain text, to be stored in a database or sent to a browser."""
    return render.spawn(seconds, name).object_id


def status(job: str) -> str:
    """Looks once and does not wait."""
    call = squall.FunctionCall.from_id(job)
    try:
        return f"done: {call.get(timeout=0)}"
    except TimeoutError:
        return "pending"
    except ValueError as error:
        return f"failed: {error}"


def poll(job: str) -> str:
    while (now := status(job)) == "pending":
        time.sleep(0.05)
    return now


@app.local_entrypoint()
def main() -> None:
    slow, quick, broken = submit(30, "poster"), submit(0, "thumbnail"), submit(0, "broken")
    print("thumbnail", poll(quick))
    print("poster", status(slow))
    print("broken", poll(broken))

    squall.FunctionCall.from_id(slow).cancel()
    try:
        squall.FunctionCall.from_id(slow).get()
    except squall.exception.CallCancelledError:
        print("poster cancelled")

    # Many jobs at once are one call with many inputs.
    batch = render.experimental_spawn_map([0] * 3, ["a", "b", "c"])
    assert batch is not None
    print(batch.num_inputs(), "jobs:", list(batch.iter()))
