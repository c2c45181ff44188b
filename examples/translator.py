"""An app to be deployed: it stays, and `use_translator.py` calls it by name.

squall up
squall deploy examples/translator.py
python examples/use_translator.py "guten morgen"
"""

import squall

app = squall.App("translator")

WORDS = {"guten": "good", "morgen": "morning", "abend": "evening", "danke": "thank you"}


@app.function(min_containers=1)
def translate(text: str) -> str:
    return " ".join(WORDS.get(word, word) for word in text.lower().split())


@app.cls()
class Dictionary:
    @squall.enter()
    def load(self) -> None:
        self.words = dict(WORDS)

    @squall.method()
    def look_up(self, word: str) -> str:
        return self.words.get(word, "?")
