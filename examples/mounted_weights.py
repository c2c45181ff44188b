"""Weights in a mounted Volume: one function writes them as files, another reads them, a schedule keeps a log beside.

squall run examples/mounted_weights.py
"""

import json
import time
from pathlib import Path

import squall

app = squall.App("mounted-weights")
models = squall.Volume.from_name("example-models", create_if_missing=True)
WEIGHTS = Path("/models/latest.json")


@app.function(volumes={"/models": models})
def train(slope: float) -> int:
    """Write files as always; `commit` makes them a version that others see."""
    WEIGHTS.write_text(json.dumps({"slope": slope, "offset": 1.0}))
    return models.commit()


@app.cls(volumes={"/models": models.read_only()})
class Model:
    """Loads the weights when its container starts."""

    @squall.enter()
    def load(self) -> None:
        """As they are now."""
        self.weights = json.loads(WEIGHTS.read_text())

    @squall.method()
    def predict(self, x: float) -> float:
        """With what was loaded."""
        return float(self.weights["slope"] * x + self.weights["offset"])

    @squall.method()
    def refresh(self) -> None:
        """See the newest version."""
        models.reload()
        self.load()


@app.function(volumes={"/models": models}, schedule=squall.Period(seconds=1))
def note() -> None:
    """What is not committed explicitly is within seconds, and when the container ends."""
    with open("/models/log.txt", "a") as log:
        log.write(f"alive at {time.time():.0f}\n")
    models.commit()


@app.local_entrypoint()
def main() -> None:
    """Two versions."""
    train.remote(2.0)
    model = Model()
    print("predicted", model.predict.remote(3.0))
    train.remote(4.0)
    model.refresh.remote()
    print("predicted", model.predict.remote(3.0))
    print("weights:", b"".join(models.read_file("latest.json")).decode())
    while "log.txt" not in [entry.path for entry in models.listdir()]:
        time.sleep(0.2)
    print("the schedule has written its log")
