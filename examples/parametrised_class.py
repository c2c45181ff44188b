"""A class with parameters: each set of values has its own containers, which prepare themselves once for it.

squall run examples/parametrised_class.py
"""

import squall

app = squall.App("parametrised-class")

WORDS = {
    "de": {"good": "gut", "morning": "morgen", "night": "nacht"},
    "fr": {"good": "bon", "morning": "matin", "night": "nuit"},
}


class Translating:
    """A base class needs no decorator: its parameters, hooks and methods are inherited."""

    language: str = squall.parameter()
    shout: bool = squall.parameter(default=False)

    @squall.enter()
    def load(self) -> None:
        """Once per container: here a large model would be loaded, the one of this language only."""
        self.words = WORDS[self.language]

    @squall.method()
    def word(self, word: str) -> str:
        found = self.words.get(word, word)
        return found.upper() if self.shout else found


@app.cls()
class Translator(Translating):
    @squall.method()
    def text(self, text: str) -> str:
        # `.local()` runs here, in the same container; `.remote()` would be a call of its own.
        return " ".join(self.word.local(each) for each in text.split())


@app.local_entrypoint()
def main() -> None:
    for language in WORDS:
        print(language, Translator(language=language).text.remote("good morning"))

    loud = Translator(language="fr", shout=True)
    print("loud", list(loud.word.map(["good", "night"])))

    # Settings for some calls only: these run in other containers, with more memory and a shorter time limit.
    large = Translator.with_options(memory=256, timeout=30)(language="de")
    print("large", large.text.remote("good night"))
