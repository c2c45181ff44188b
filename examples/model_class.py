"""A class that loads a model once per container and then answers many requests at the same time.

squall run examples/model_class.py
"""

import math
import time
from collections import Counter

import squall

app = squall.App("model-class")

TEXTS = {
    "english": "the weather is nice today and we will go for a walk in the park with our dog where the trees are",
    "german": "das wetter ist heute schön und wir werden mit unserem hund im park spazieren gehen wo die bäume sind",
    "french": "il fait beau aujourd'hui et nous allons nous promener dans le parc avec notre chien où est le lac",
}


def pairs(text: str) -> list[str]:
    """The letter pairs of a text: languages have their own."""
    return [text[start : start + 2].lower() for start in range(len(text) - 1)]


@app.cls(scaledown_window=30)
@squall.concurrent(max_inputs=10)
class LanguageModel:
    smoothing: int = squall.parameter(default=1)

    @squall.enter()
    def load(self) -> None:
        """Runs once, before the first request: this is where weights are loaded."""
        time.sleep(0.3)
        self.weights = {language: Counter(pairs(text)) for language, text in TEXTS.items()}
        print("model loaded")

    @squall.method()
    def language_of(self, text: str) -> str:
        return max(self.weights, key=lambda language: self._likelihood(text, self.weights[language]))

    def _likelihood(self, text: str, counts: Counter[str]) -> float:
        total = sum(counts.values()) + self.smoothing * 500
        return sum(math.log((counts[pair] + self.smoothing) / total) for pair in pairs(text))

    @squall.exit()
    def unload(self) -> None:
        print("model unloaded")


@app.local_entrypoint()
def main() -> None:
    model = LanguageModel()
    sentences = ["where is the train station", "wo ist denn hier der bahnhof", "où est la gare s'il vous plaît"]
    for sentence, language in zip(sentences, model.language_of.map(sentences), strict=True):
        print(f"{language:8} {sentence}")

    started = time.monotonic()
    answers = list(model.language_of.map(sentences * 20))
    print(f"{len(answers)} requests in {time.monotonic() - started:.1f} s")
