"""A function that takes its container with it, for the harness."""

import json
import os
import time

import squall

app = squall.App("dying")


@app.function(
    timeout=60,
    max_containers=2,
    env={"VERIFY_EFFECTS": os.environ.get("VERIFY_EFFECTS", "")},
    cpu=0.0625,
    scaledown_window=5,
)
def die(job):
    from squall_runner import context

    current = context.current()
    about = {"call": current.call, "index": current.index, "attempt": current.attempt, "op": job["op"]}
    line = {"what": "start", "at": time.time(), "pid": os.getpid(), "nonce": f"{os.getpid()}-{time.time()}", **about}
    with open(os.environ["VERIFY_EFFECTS"], "a") as file:
        file.write(json.dumps({**line, "function": "die", "version": 1}) + "\n")
    os._exit(1)
