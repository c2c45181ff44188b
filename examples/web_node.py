"""A server that is not Python: `squall deploy examples/web_node.py`. Node.js must be on the machine, or in the image.

`web_server` knows nothing of the language: any program that listens on the port will do.
"""

import subprocess
from pathlib import Path

import squall

PORT = 18502
app = squall.App("node")
image = squall.Image.debian_slim().add_local_file(Path(__file__).parent / "web_node.mjs", "/root/web_node.mjs")


@app.function(image=image, max_containers=1)
@squall.concurrent(max_inputs=100)
@squall.web_server(PORT, startup_timeout=20)
def counter() -> None:
    subprocess.Popen(["node", "/root/web_node.mjs", str(PORT)])
