"""Map and reduce: the most frequent words of a text, counted in parallel.

squall run examples/word_count.py
squall run examples/word_count.py --file README.md --top 5
"""

from collections import Counter
from pathlib import Path

import squall

app = squall.App("word-count")

LINES_PER_PART = 25


@app.function()
def count_words(lines: list[str]) -> Counter[str]:
    words = (word.strip(".,:;!?()`'\"*#").lower() for line in lines for word in line.split())
    return Counter(word for word in words if len(word) > 3)


@app.local_entrypoint()
def main(file: str = "", top: int = 3) -> None:
    text = Path(file).read_text() if file else "the quick brown fox jumps over the lazy brown dog\n" * 500
    lines = text.splitlines()
    parts = [lines[start : start + LINES_PER_PART] for start in range(0, len(lines), LINES_PER_PART)]

    total: Counter[str] = Counter()
    # The order of the parts does not matter: take each as soon as it is there.
    for counts in count_words.map(parts, order_outputs=False):
        total.update(counts)

    print(f"{len(lines)} lines in {len(parts)} parts")
    for word, times in total.most_common(top):
        print(f"{times:6d} {word}")
