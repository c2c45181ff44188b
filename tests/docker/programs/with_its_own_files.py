"""Written as for Modal: its image has files of its own, and nothing says where it shall run."""

import squall as modal

image = (
    modal.Image.debian_slim()
    .add_local_file(__file__, "/data/program.py", copy=True)
    .run_commands("wc -l < /data/program.py > /etc/lines")
)
app = modal.App("with-its-own-files")


@app.function(image=image)
def lines() -> int:
    with open("/etc/lines") as file:
        return int(file.read())


@app.function(block_network=True)
def networks() -> list[str]:
    import socket

    return [name for _, name in socket.if_nameindex()]


@app.function()
def pid() -> int:
    import os

    return os.getpid()


@app.local_entrypoint()
def main() -> None:
    print("lines", lines.remote())
    print("networks", *networks.remote())
    print("in a pid namespace of its own:", pid.remote() < 100)
