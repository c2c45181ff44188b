"""A generator: text that appears while it is being made, token by token.

squall run examples/token_stream.py --prompt "once upon a time"
"""

import random
import time
from collections.abc import Iterator

import squall

app = squall.App("token-stream")


@app.function()
def generate(prompt: str, tokens: int = 20) -> Iterator[str]:
    """Stands in for a language model."""
    words = prompt.split() or ["hello"]
    chooser = random.Random(prompt)
    for _ in range(tokens):
        time.sleep(0.02)
        yield chooser.choice(words)


@app.local_entrypoint()
def main(prompt: str = "once upon a time", tokens: int = 20) -> None:
    count = 0
    for token in generate.remote_gen(prompt, tokens):
        print(token, end=" ", flush=True)
        count += 1
    print(f"\n{count} tokens")
