"""A crawler: breadth first, one wave after the other, each container waiting for many pages at the same time.

squall run examples/crawler.py
"""

import asyncio

import squall

app = squall.App("crawler")

PAGES = 200


@app.function(max_containers=4, timeout=30)
@squall.concurrent(max_inputs=20)
async def fetch(page: int) -> list[int]:
    """The links of a page. An async function waits for many of them with one thread."""
    await asyncio.sleep(0.02)  # stands in for the network
    return [link for link in (page * 3 + 1, page * 3 + 2, page * 3 + 3, page // 2) if link < PAGES]


@app.local_entrypoint()
def main() -> None:
    seen = {0}
    wave, waves = [0], []
    while wave:
        waves.append(len(wave))
        found: set[int] = set()
        for links in fetch.map(wave, order_outputs=False):  # each page's links as soon as they are there
            found.update(links)
        wave = sorted(found - seen)
        seen |= found
    print(f"{len(seen)} pages in {len(waves)} waves of", *waves)
