"""An HTTP server that is not Python, in an isolated container: `squall deploy examples/web_busybox.py`.

busybox is one static program; its `httpd` serves a folder. Any program in any language that listens on the port will
do: `web_server` asks for nothing else. Here the program is this machine's (Debian: `busybox-static`).
"""

import shutil
import subprocess
from pathlib import Path

import squall

PORT = 18503
BUSYBOX = "/usr/local/bin/busybox"
app = squall.App("busybox")
image = squall.Image.debian_slim()
if squall.is_local():
    own = shutil.which("busybox")
    assert own, "install busybox-static on this machine"
    image = image.add_local_file(own, BUSYBOX)


@app.function(image=image, max_containers=1)
@squall.concurrent(max_inputs=100)
@squall.web_server(PORT, startup_timeout=20)
def pages() -> None:
    folder = Path("/tmp/pages")
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text("<h1>served by busybox</h1>\n")
    subprocess.Popen([BUSYBOX, "httpd", "-f", "-p", str(PORT), "-h", str(folder)])
