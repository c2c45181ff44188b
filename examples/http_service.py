"""An app for callers in any language; `http_client.sh` (curl) and `http_client.mjs` (Node.js) call it over HTTP.

squall up
squall deploy examples/http_service.py
export SQUALL_SERVER_URL=...  SQUALL_TOKEN=...    # `squall up` prints both places
bash examples/http_client.sh
node examples/http_client.mjs
"""

import time

import squall

app = squall.App("http-service")


@app.function()
def total(prices: list[float], discount: float = 0.0) -> dict:
    return {"total": round(sum(prices) * (1 - discount), 2), "items": len(prices)}


@app.function()
def countdown(start: int):
    for left in range(start, 0, -1):
        time.sleep(0.01)
        yield {"left": left}


@app.cls()
class Greeter:
    language: str = squall.parameter(default="en")

    @squall.method()
    def greet(self, name: str) -> str:
        if not name:
            raise ValueError("nobody to greet")
        return {"en": "Hello", "de": "Hallo"}[self.language] + f", {name}!"
