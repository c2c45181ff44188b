"""Ask for GPUs with fallbacks, hold a model on them, and see what a container gets. Needs no GPU to try:

squall up --simulate-gpus H100:2,L4:4
squall run examples/gpu_fallbacks.py
squall down
"""

import os

import squall

app = squall.App("gpu-fallbacks")


def my_devices() -> list[str]:
    """The devices of this container, by uuid. CUDA and PyTorch number them from 0."""
    return [uuid for uuid in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if uuid]


@app.cls(gpu=["B200", "H100:2"], cpu=0.25)  # the first choice that some machine can satisfy now
class Model:
    @squall.enter()
    def load(self) -> None:
        """Once for each container: this is where weights go to the devices."""
        self.devices = my_devices()

    @squall.method()
    def answer(self, question: str) -> str:
        return f"{question}? Computed on {len(self.devices)} devices."


@app.function(gpu="any", cpu=0.1)
def embed(text: str) -> int:
    """Any device will do."""
    assert len(my_devices()) == 1
    return len(text)


@app.function()
def plan() -> str:
    """A function without `gpu=` sees none, whatever its machine has."""
    return f"{len(my_devices())} devices are needed to plan"


@app.local_entrypoint()
def main() -> None:
    print(plan.remote())
    print(Model().answer.remote("Why"))
    print(sum(embed.map(["one", "three", "five"])))
