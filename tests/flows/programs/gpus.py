"""Functions with GPUs. Each container locks the devices that it sees for as long as it lives: two cannot have one."""

import fcntl
import os
import time

import squall

app = squall.App("gpus")
LOCKS = {"LOCKS": os.environ.get("LOCKS", "")}
SMALL = {"cpu": 0.01, "memory": 16}


def devices():
    return [uuid for uuid in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if uuid]


def lock_devices():
    assert os.environ["NVIDIA_VISIBLE_DEVICES"] == (",".join(devices()) or "void")
    for uuid in devices():
        lock = os.open(os.path.join(os.environ["LOCKS"], uuid), os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: another container has it


@app.cls(gpu="h100", scaledown_window=2, env=LOCKS, **SMALL)
class Single:
    key: int = squall.parameter()

    @squall.enter()
    def load(self):
        lock_devices()

    @squall.method()
    def use(self, seconds):
        time.sleep(seconds)
        return devices()


@app.cls(gpu=["B200", "H100!:3"], scaledown_window=2, env=LOCKS, **SMALL)
class Triple:
    key: int = squall.parameter()

    @squall.enter()
    def load(self):
        lock_devices()

    @squall.method()
    def use(self, seconds):
        time.sleep(seconds)
        return devices()


@app.function(**SMALL)
def without():
    return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["NVIDIA_VISIBLE_DEVICES"]


@app.function(gpu="H100", max_containers=1, scaledown_window=2, env=LOCKS, **SMALL)
def hold(effects, gate):
    """Says which device it has, and waits for the gate."""
    lock_devices()
    with open(effects, "a") as file:
        file.write("".join(devices()) + "\n")
    while not os.path.exists(gate):
        time.sleep(0.01)
    return devices()


@app.function(gpu="H100:8", **SMALL)
def all_of_them():
    return devices()


@app.function(gpu="L4", **SMALL)
def elsewhere():
    return devices()
