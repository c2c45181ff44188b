"""Work that takes longer than a browser waits: `squall deploy examples/web_jobs.py`, then

curl -X POST '<address>/jobs?words=20'     answers at once: 202, and where to ask
curl '<address>/jobs/fc-...'               202 while it runs, then the result
curl -X DELETE '<address>/jobs/fc-...'     ends it

A job is a call like any other: it survives the container that took the request, and is retried as its function says.
"""

import random
import time
from typing import Any

import squall

app = squall.App("web-jobs")
web_image = squall.Image.debian_slim().pip_install("fastapi")
LETTERS = "bcdfgklmnprst"


@app.function(retries=2, timeout=600)
def report(words: int, seconds: float) -> str:
    """What takes long."""
    if words < 1:
        raise ValueError("a report has at least one word")
    time.sleep(seconds)
    chosen = random.Random(words)
    return " ".join(chosen.choice(LETTERS) + chosen.choice("aeiou") for _ in range(words))


@app.function(image=web_image)
@squall.concurrent(max_inputs=100)
@squall.asgi_app()
def jobs() -> Any:
    from fastapi import FastAPI, Request, Response

    web = FastAPI()

    @web.post("/jobs", status_code=202)
    async def submit(request: Request, response: Response, words: int = 10, seconds: float = 5.0) -> dict[str, str]:
        call = await report.spawn.aio(words, seconds)
        response.headers["Location"] = str(request.url_for("look", job=call.object_id))
        return {"job": call.object_id, "state": "accepted"}

    @web.get("/jobs/{job}")
    async def look(response: Response, job: str) -> dict[str, Any]:
        try:
            return {"job": job, "state": "done", "result": await squall.FunctionCall.from_id(job).get.aio(timeout=0)}
        except TimeoutError:
            response.status_code = 202
            return {"job": job, "state": "running"}
        except squall.exception.CallCancelledError:
            return {"job": job, "state": "cancelled"}
        except (squall.exception.InvalidError, squall.exception.NotFoundError):
            response.status_code = 404
            return {"job": job, "state": "unknown"}
        except ValueError as error:
            return {"job": job, "state": "failed", "error": str(error)}

    @web.delete("/jobs/{job}", status_code=204)
    async def cancel(job: str) -> None:
        await squall.FunctionCall.from_id(job).cancel.aio()

    return web
