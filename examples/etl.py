"""Extract, transform, load: pages of a shop's unreliable interface become sums per customer. What fails now and then
is tried again; what cannot be read is set aside, and the rest goes on.

squall run examples/etl.py
"""

from collections import Counter
from typing import Any

import squall

app = squall.App("etl")

PAGES = 24


class Unavailable(Exception):
    """The other side is busy: worth another try."""


@app.cls(max_containers=1)
@squall.concurrent(max_inputs=16)
class Shop:
    """Stands in for the interface that you read from: it refuses the first request for every third page."""

    @squall.enter()
    def open(self) -> None:
        self.asked: Counter[int] = Counter()

    @squall.method()
    def page(self, number: int) -> list[dict[str, Any]]:
        self.asked[number] += 1
        if number % 3 == 0 and self.asked[number] == 1:
            raise Unavailable(f"page {number}: try again later")
        amount = "n/a" if number == 10 else f"{number}.50"
        return [{"customer": f"c{(number + n) % 4}", "amount": amount} for n in range(5)]


@app.function(retries=squall.Retries(max_retries=3, initial_delay=0.1), timeout=30)
@squall.concurrent(max_inputs=8)
def extract(number: int) -> list[dict[str, Any]]:
    return Shop().page.remote(number)


@app.function(timeout=30)
def transform(rows: list[dict[str, Any]]) -> Counter[str]:
    """In cents. No retries here: an amount that is no number stays none."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row["customer"]] += round(float(row["amount"]) * 100)
    return sums


@app.local_entrypoint()
def main() -> None:
    # A map takes any iterable: pages are transformed while others are still being read.
    pages = extract.map(range(PAGES))
    done, aside = Counter[str](), []
    for number, sums in enumerate(transform.map(pages, return_exceptions=True)):
        if isinstance(sums, Exception):
            aside.append(f"page {number}: {sums}")
        else:
            done.update(sums)
    print(f"{PAGES - len(aside)} pages loaded, {len(aside)} set aside")
    for customer, cents in sorted(done.items()):
        print(f"{customer} {cents / 100:.2f}")
    print(*aside, sep="\n")
