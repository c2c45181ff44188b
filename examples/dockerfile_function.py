"""A function in the image of a Dockerfile: `squall run examples/dockerfile_function.py`.

Needs containers that are isolated (`squall up` as root on Linux gives it one by itself) and a builder with a Docker
engine (`SQUALL_BUILDER_DOCKER_HOST=unix:///var/run/docker.sock`); the error says so where they lack. `BASE` is another
base.
"""

import os
from pathlib import Path

import squall

HERE = Path(__file__).parent
arguments = {"BASE": os.environ["BASE"]} if squall.is_local() and "BASE" in os.environ else {}
image = squall.Image.from_dockerfile(
    HERE / "dockerfile" / "Dockerfile", context_dir=HERE / "dockerfile", build_args=arguments
)
app = squall.App("dockerfile", image=image)


@app.function()
def words() -> tuple[str, str, list[str]]:
    return os.environ["GREETING"], os.getcwd(), Path("sorted.txt").read_text().split()


@app.local_entrypoint()
def main() -> None:
    greeting, folder, found = words.remote()
    print(f"{greeting}, in {folder}: {', '.join(found)}")
