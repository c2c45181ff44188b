"""A web API: `squall deploy examples/web_api.py`, then open the address that it prints.

A FastAPI app answers cheap requests itself and has a model, in containers of its own, do the work. Beside it there is
one function that is a whole endpoint: it streams, and only callers with a proxy token reach it."""

from collections.abc import Iterator
from typing import Any

import squall

app = squall.App("web-api")
web_image = squall.Image.debian_slim().pip_install("fastapi")


@app.cls(scaledown_window=300)
class Model:
    """Loaded once in each container, then used for many requests."""

    @squall.enter()
    def load(self) -> None:
        self.words = {"good": 1, "great": 2, "bad": -1, "awful": -2}

    @squall.method()
    def score(self, text: str) -> int:
        return sum(self.words.get(word, 0) for word in text.lower().split())


@app.function(image=web_image)
@squall.concurrent(max_inputs=100)
@squall.asgi_app()
def api() -> Any:
    from fastapi import FastAPI

    web = FastAPI()

    @web.get("/")
    async def home() -> dict[str, str]:
        return {"try": "/score?text=a great day"}

    @web.get("/score")
    async def score(text: str) -> dict[str, Any]:
        return {"text": text, "score": await Model().score.remote.aio(text)}

    return web


@app.function(image=web_image)
@squall.concurrent(max_inputs=20)
@squall.fastapi_endpoint(docs=True, requires_proxy_auth=True)
def tokens(prompt: str, n: int = 5) -> Any:
    """`curl -N -H 'Squall-Key: ...' -H 'Squall-Secret: ...' '<address>?prompt=hello'`"""
    from fastapi.responses import StreamingResponse

    def events() -> Iterator[str]:
        for number in range(n):
            yield f"data: {prompt} {number}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
