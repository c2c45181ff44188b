"""A server of its own behind an address: any program that listens on a port, here Python's own.

squall deploy examples/web_own_server.py
curl http://main--own-server-files.localhost:8700/
"""

from __future__ import annotations

import subprocess
import sys

import squall

app = squall.App("own-server")
PORT = 8000


@app.server(port=PORT, max_concurrency=8, unauthenticated=True)
class Files:
    """Shows the folder that it runs in. Without a container it answers 503; the next request finds one."""

    @squall.enter()
    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "http.server", str(PORT)])

    @squall.exit()
    def stop(self) -> None:
        self.process.terminate()
