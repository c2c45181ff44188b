"""A function whose image takes as long to build as the test wants: the package's build waits for a file."""

import os

import squall

app = squall.App("slow-image")
image = squall.Image.debian_slim().uv_pip_install(f"gated @ file://{os.environ.get('GATED_PACKAGE', '')}")


@app.function(image=image)
def answer():
    import gated

    return gated.ANSWER
