"""Two functions whose answers must come from one deployed version. The test writes another VERSION into a copy."""

import squall

VERSION = 1

app = squall.App("versions")


@app.function()
def left():
    return VERSION


@app.function()
def both():
    return VERSION, left.remote()
