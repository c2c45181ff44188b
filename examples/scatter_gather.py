"""Workers that take parts from a queue and write what they find into a dict.

squall run examples/scatter_gather.py
"""

import squall

app = squall.App("scatter-gather")


@app.function(max_containers=4)
def work(parts: squall.Queue, found: squall.Dict) -> int:
    """Take parts until there are none left. Handles can be arguments."""
    done = 0
    while (part := parts.get(block=False)) is not None:
        found[part] = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(2, part), part + 100))
        done += 1
    return done


@app.function()
def lead(found: squall.Dict, name: str) -> bool:
    """Of all who try, one becomes the leader."""
    return found.put("leader", name, skip_if_exists=True)


@app.local_entrypoint()
def main() -> None:
    """The primes below 1000, in ten parts, by three workers."""
    with squall.Queue.ephemeral() as parts, squall.Dict.ephemeral() as found:
        parts.put_many(list(range(0, 1000, 100)))
        done = sum(work.starmap([(parts, found)] * 3))
        print("primes below 1000:", sum(found.values()))
        print("done by workers:", done, "parts")
        leaders = sum(lead.starmap([(found, name) for name in ("a", "b", "c")]))
        print("one leader" if leaders == 1 else f"{leaders} leaders")
