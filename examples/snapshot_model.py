"""A model that is loaded once and forked from then on: what its cold starts take, printed.

squall run examples/snapshot_model.py

It is made of numpy on purpose: PyPI's torch for Linux brings CUDA along, several GB, which is no size for an example.
With torch it reads the same: `self.network = torch.nn.Sequential(...)` in `load`, and what needs a GPU (`.cuda()`) in
`connect`, because no fork can share a device. docs/howto/cold-starts.md says what else makes a start short.
"""

import os
import time

import squall

app = squall.App("snapshot-model", image=squall.Image.debian_slim().pip_install("numpy"))

with app.image.imports():
    import numpy as np

LAYERS, WIDTH = 16, 1024


# Each container serves one call here, so that every call shows a cold start.
@app.cls(enable_memory_snapshot=True, single_use_containers=True)
class Network:
    @squall.enter(snap=True)
    def load(self) -> None:
        """Runs once for all containers of this version: imports and weights, here 64 MiB."""
        random = np.random.default_rng(7)
        self.layers = [random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 32 for _ in range(LAYERS)]
        # A container has an id; what is loaded before there is one is shared by all that are forked from it.
        self.shared = "SQUALL_CONTAINER_ID" not in os.environ

    @squall.enter(snap=False)
    def connect(self) -> None:
        """Runs in each container: connections, devices, everything that must be its own."""
        self.began = time.time()

    @squall.method()
    def run(self, seed: int) -> tuple[float, bool]:
        signal = np.random.default_rng(seed).standard_normal(WIDTH, dtype=np.float32)
        for layer in self.layers:
            signal = np.tanh(layer @ signal)
        return float(np.abs(signal).mean()), self.shared


@app.local_entrypoint()
def main() -> None:
    network = Network()
    began = time.monotonic()
    first, _ = network.run.remote(1)
    print(f"first call, with the snapshot made for it: {time.monotonic() - began:.2f} s")
    for _ in range(3):
        began = time.monotonic()
        again, shared = network.run.remote(1)
        how = "forked from the loaded model" if shared else "loaded anew: `squall trace` says why"
        print(f"cold start: {time.monotonic() - began:.2f} s, {how}")
        assert again == first, "the same weights"
