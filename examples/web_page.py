"""An interactive page by a server of its own: `squall deploy examples/web_page.py`.

`web_server` passes requests on to whatever listens on the port. Here it is this file again, as a program of its own, so
that it needs no package. `web_streamlit.py` is a page of Streamlit.
"""

import math
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import squall

PORT = 18501
PAGE = """<!doctype html><title>Waves</title><form>
<label>waves <input type=range name=waves min=1 max=9 value={waves} onchange=form.submit()></label> {waves}</form>
<svg viewBox="0 -60 400 120" width=400><polyline fill=none stroke=black points="{points}"/></svg>"""

app = squall.App("page")


@app.function(max_containers=1)
@squall.concurrent(max_inputs=100)
@squall.web_server(PORT, startup_timeout=20)
def page() -> None:
    subprocess.Popen([sys.executable, __file__])


class Page(BaseHTTPRequestHandler):
    """One page, drawn anew for each choice."""

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query).get("waves", ["3"])[0]
        waves = min(9, max(1, int(asked))) if asked.isdecimal() else 3
        points = " ".join(f"{x},{50 * math.sin(x * waves / 63.7):.1f}" for x in range(0, 401, 4))
        body = PAGE.format(waves=waves, points=points).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", PORT), Page).serve_forever()
