"""An image with packages: what a function imports need not be installed here.

squall run examples/package_image.py
"""

import squall

image = squall.Image.debian_slim().uv_pip_install("humanize==4.12.1")
app = squall.App("package-image", image=image)

with image.imports():
    import humanize


@app.function()
def describe(size: int) -> str:
    return f"{size} bytes are {humanize.naturalsize(size)}"


@app.local_entrypoint()
def main(size: int = 123_456_789) -> None:
    print(describe.remote(size))
