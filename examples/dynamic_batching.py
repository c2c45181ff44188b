"""Dynamic batching: many callers with one text each, a model that is called once for a whole batch of them.

squall run examples/dynamic_batching.py
"""

import time
from collections import Counter

import squall

app = squall.App("dynamic-batching")


@app.cls(max_containers=1)
class Embedder:
    @squall.enter()
    def load(self) -> None:
        self.vowels = "aeiou"
        self.batches = 0

    @squall.batched(max_batch_size=16, wait_ms=100)
    def embed(self, text: list[str]) -> list[tuple[int, list[int]]]:
        """Gets a list for each parameter; returns a list with the result of each input, in the same order.

        Callers give one text and get one result. A real model is as fast for 16 texts as for one."""
        self.batches += 1
        time.sleep(0.02)
        return [(self.batches, [Counter(each)[vowel] for vowel in self.vowels]) for each in text]


@app.local_entrypoint()
def main() -> None:
    texts = [f"sentence number {n} about dynamic batching" for n in range(64)]
    results = list(Embedder().embed.map(texts))
    batches = {batch for batch, _ in results}
    print(f"{len(results)} texts in {len(batches)} calls of the model")
    print("the first vector:", results[0][1])

    # The same class with other limits, in containers of their own: for callers who would rather not wait.
    impatient = Embedder.with_batching(max_batch_size=2, wait_ms=0)()
    print("alone:", impatient.embed.remote("a quick one")[1])
