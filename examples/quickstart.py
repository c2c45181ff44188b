"""The smallest program: one call, then many.

squall run examples/quickstart.py
squall run examples/quickstart.py --n 1000
"""

import squall

app = squall.App("quickstart")


@app.function(retries=3, timeout=60)
def square(x: int) -> int:
    return x * x


@app.local_entrypoint()
def main(n: int = 10) -> None:
    print(square.remote(7))  # one call, anywhere in the fleet
    print(sum(square.map(range(n))))  # many, in parallel, results in order
