"""A build backend without dependencies. `build_wheel` says that it began, and waits until the gate opens."""

import pathlib
import time
import zipfile

HERE = pathlib.Path(__file__).parent
INFO = "gated-1.0.dist-info"
FILES = {
    "gated.py": "ANSWER = 42\n",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: gated\nVersion: 1.0\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/RECORD": "",
}


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    with open(HERE / "builds", "a") as builds:
        builds.write("build\n")
    while not (HERE / "gate").exists():
        time.sleep(0.01)
    name = "gated-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        for path, text in FILES.items():
            wheel.writestr(path, text)
    return name
