"""A WSGI app without any package: `squall deploy examples/web_guestbook.py`. Flask and Django apps are returned the
same way. One container, because it keeps its entries in memory."""

import html
from typing import Any
from urllib.parse import parse_qs

import squall

app = squall.App("guestbook")
PAGE = "<!doctype html><title>Guests</title><form method=post><input name=guest><button>Sign</button></form><ul>{}</ul>"


@app.function(max_containers=1)
@squall.concurrent(max_inputs=10)
@squall.wsgi_app()
def page() -> Any:
    guests: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            form = parse_qs(environ["wsgi.input"].read(10_000).decode())
            guests.extend(form.get("guest", []))
            start_response("303 See Other", [("Location", environ["SCRIPT_NAME"] + "/")])
            return []
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [PAGE.format("".join(f"<li>{html.escape(guest)}" for guest in guests)).encode()]

    return application
