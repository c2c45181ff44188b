"""A language model, from training to a page in the browser: a small one, made here, but every part is the real thing.

squall secret create llm-settings TEMPERATURE=0.8
squall run examples/llm_app.py                 # trains, evaluates 1,000 prompts, writes a line
squall deploy examples/llm_app.py              # the page, the stream, and a training every hour
squall token proxy create                      # a key and a secret for the stream
curl -N -H "Authorization: Bearer KEY.SECRET" "<address of api>/stream?prompt=the%20"
"""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import squall

app = squall.App("llm", image=squall.Image.debian_slim().pip_install("numpy", "fastapi"))
weights = squall.Volume.from_name("llm-weights", create_if_missing=True)
settings = squall.Secret.from_name("llm-settings", required_keys=["TEMPERATURE"])

with app.image.imports():
    import numpy as np

WEIGHTS = Path("/weights/latest.npz")
LETTERS = "abcdefghijklmnopqrstuvwxyz .,"
CONTEXT, EMBEDDING, HIDDEN = 4, 8, 48
TEXT = (
    "the river runs to the sea and the sea gives the rain, the rain falls on the hills and the hills feed the river. "
    "a small boat goes down the river, past the mill and the old bridge, and the people on the bridge wave. "
    "when the evening comes the boat is at the sea, and the lights of the town are far behind. "
) * 3
PAGE = """<!doctype html><meta charset="utf-8"><title>A small language model</title>
<body style="font-family: sans-serif; max-width: 40em; margin: 3em auto">
<h1>A small language model</h1>
<form><input id="token" placeholder="KEY.SECRET" size="40"> <input id="start" value="the ">
<button>Write</button></form>
<p id="text" style="font-size: 1.4em"></p>
<script>
document.querySelector("form").onsubmit = async (event) => {
  event.preventDefault()
  text.textContent = start.value
  const headers = {Authorization: "Bearer " + token.value}
  const answer = await fetch("STREAM?prompt=" + encodeURIComponent(start.value), {headers})
  if (!answer.ok) { text.textContent = answer.status + ": " + await answer.text(); return }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) text.textContent += piece.value
}
</script>"""


def windows(text: str) -> Any:
    """Each letter's number, after the numbers of those before it."""
    numbers = [LETTERS.index(letter) for letter in " " * CONTEXT + text]
    return np.array([numbers[start : start + CONTEXT + 1] for start in range(len(text))])


class Network:
    """Embeddings, one hidden layer, and a probability for each next letter."""

    def __init__(self) -> None:
        random = np.random.default_rng(7)
        shapes = [(len(LETTERS), EMBEDDING), (CONTEXT * EMBEDDING, HIDDEN), (HIDDEN, len(LETTERS))]
        self.parts = [random.normal(0, 0.3, shape) for shape in shapes]

    def probabilities(self, contexts: Any) -> tuple[Any, Any, Any]:
        """Of the next letters, and what was computed on the way."""
        letters, inner, outer = self.parts
        entered = letters[contexts].reshape(len(contexts), -1)
        hidden = np.tanh(entered @ inner)
        scores = hidden @ outer
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True), hidden, entered

    def learn(self, examples: Any, rate: float) -> None:
        """One step down the gradient."""
        letters, inner, outer = self.parts
        contexts, wanted = examples[:, :CONTEXT], examples[:, CONTEXT]
        error, hidden, entered = self.probabilities(contexts)
        error[np.arange(len(wanted)), wanted] -= 1
        error /= len(wanted)
        inside = (error @ outer.T) * (1 - hidden**2)
        below = (inside @ inner.T).reshape(len(contexts), CONTEXT, EMBEDDING)
        outer -= rate * hidden.T @ error
        inner -= rate * entered.T @ inside
        np.subtract.at(letters, contexts, rate * below)


@app.function(volumes={"/weights": weights}, schedule=squall.Period(hours=1), timeout=600)
def refresh(steps: int = 300) -> int:
    """Train a little more; the version of the volume that has the result."""
    network = Network()
    if WEIGHTS.exists():
        with np.load(WEIGHTS) as saved:
            network.parts = [saved[f"arr_{number}"] for number in range(3)]
    examples = windows(TEXT)
    for _ in range(steps):
        network.learn(examples, rate=0.8)
    with open(WEIGHTS, "wb") as file:
        np.savez(file, *network.parts)
    return weights.commit()


@app.cls(volumes={"/weights": weights.read_only()}, secrets=[settings], enable_memory_snapshot=True)
@squall.concurrent(max_inputs=8)
class Writer:
    """Loaded once per machine: later containers begin with the weights in memory."""

    @squall.enter(snap=True)
    def load(self) -> None:
        self.network = Network()
        with np.load(WEIGHTS) as saved:
            self.network.parts = [saved[f"arr_{number}"] for number in range(3)]

    @squall.enter(snap=False)
    def choose(self) -> None:
        self.temperature = float(os.environ["TEMPERATURE"])
        self.random = np.random.default_rng()

    @squall.method()
    def write(self, prompt: str, length: int = 80) -> Iterator[str]:
        """Letter by letter."""
        text = "".join(letter for letter in prompt.lower() if letter in LETTERS)
        for _ in range(length):
            context = windows(text + " ")[-1:, :CONTEXT]
            chances = self.network.probabilities(context)[0][0] ** (1 / self.temperature)
            text += LETTERS[int(self.random.choice(len(LETTERS), p=chances / chances.sum()))]
            yield text[-1]

    @squall.method()
    def bits(self, text: str) -> float:
        """How surprised it is by each letter: 4.9 bits would be guessing."""
        examples = windows(text)
        chances = self.network.probabilities(examples[:, :CONTEXT])[0][np.arange(len(examples)), examples[:, CONTEXT]]
        return float(-np.log2(chances).mean())


@app.function()
@squall.concurrent(max_inputs=50)
@squall.asgi_app(requires_proxy_auth=True)
def api() -> Any:
    """Only callers with a proxy token reach it, and without one no container starts."""
    from fastapi import FastAPI
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.responses import StreamingResponse

    web = FastAPI()
    web.add_middleware(CORSMiddleware, allow_origins=["*"])  # the page has another host

    async def pieces(prompt: str) -> AsyncIterator[str]:
        async for letter in Writer().write.remote_gen.aio(prompt):
            yield letter

    @web.get("/stream")
    async def stream(prompt: str = "the ") -> StreamingResponse:
        return StreamingResponse(pieces(prompt), media_type="text/plain")

    @web.get("/bits")
    async def bits(text: str) -> dict[str, float]:
        return {"bits": await Writer().bits.remote.aio(text)}

    return web


@app.function()
@squall.asgi_app()
def page() -> Any:
    """For a browser; what it asks for is behind the token."""
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

    web = FastAPI()

    @web.get("/", response_class=HTMLResponse)
    async def home() -> str:
        return PAGE.replace("STREAM", f"{api.get_web_url()}/stream")

    return web


@app.local_entrypoint()
def main(steps: int = 300) -> None:
    """Train, look how good it is, let it write."""
    print("weights are version", refresh.remote(steps))
    words = TEXT.replace(",", "").replace(".", "").split()
    prompts = [" ".join(pair) for pair in itertools.islice(itertools.cycle(itertools.pairwise(words)), 1000)]
    scores = list(Writer().bits.map(prompts))
    print(f"{len(scores)} prompts, {sum(scores) / len(scores):.1f} bits for each letter")
    print("the " + "".join(Writer().write.remote_gen("the ")))
