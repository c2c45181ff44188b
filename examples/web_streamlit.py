"""A Streamlit page: `squall deploy examples/web_streamlit.py`, then open what it prints in a browser.

Streamlit is a server of its own that keeps a WebSocket to each page open, so `web_server` passes everything on to its
port. A page is a session that lives in one process: `max_containers=1`, and as many pages as `concurrent` allows.
"""

import subprocess
import sys
from pathlib import Path

import squall

PORT = 18504
PAGE = Path("/tmp/page.py")
SCRIPT = """\
import streamlit as st

st.title("Squares")
number = st.slider("How many", 1, 20, 5)
st.write(", ".join(str(n * n) for n in range(number)))
"""
OPTIONS = {
    "server.port": PORT,
    "server.address": "127.0.0.1",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    # The page is opened under the gateway's name, which this server does not know.
    "server.enableCORS": "false",
    "server.enableXsrfProtection": "false",
    "browser.gatherUsageStats": "false",
}

app = squall.App("streamlit", image=squall.Image.debian_slim().pip_install("streamlit"))


@app.function(max_containers=1, timeout=3600)
@squall.concurrent(max_inputs=100)
@squall.web_server(PORT, startup_timeout=60)
def page() -> None:
    PAGE.write_text(SCRIPT)
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    subprocess.Popen([sys.executable, "-m", "streamlit", "run", str(PAGE), *options])
