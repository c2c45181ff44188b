"""A function with a schedule, for the harness."""

import json
import os
import time

import squall

app = squall.App(f"ticking-{time.time_ns()}")


@app.function(
    timeout=60,
    max_containers=1,
    env={"VERIFY_EFFECTS": os.environ.get("VERIFY_EFFECTS", "")},
    cpu=0.0625,
    scaledown_window=5,
    schedule=squall.Period(seconds=1),
)
def beat():
    from squall_runner import context

    current = context.current()
    about = {"call": current.call, "index": current.index, "attempt": current.attempt, "op": "beat/"}
    nonce = f"nx-{os.urandom(8).hex()}"
    with open(os.environ["VERIFY_EFFECTS"], "a") as file:
        for what in ("start", "end"):
            line = {"what": what, "at": time.time(), "pid": os.getpid(), "nonce": nonce, **about}
            file.write(json.dumps({**line, "function": "beat", "version": 1}) + "\n")
            file.flush()
    return nonce
