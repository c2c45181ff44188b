"""Byte-code of an interpreter's own library, as a layer on top of the base that brings it.

Images of interpreters come without it to be small. A container without a template would compile what it imports anew at
every start, since its root keeps nothing: `import squall` took 1.9 s then, and the runner's own imports 1.1 s.
"""

from __future__ import annotations

from squall.errors import ImageBuildError
from squall.spec import digest
from squall_images.build_room import OnLine, Room, Work
from squall_images.layered import KEY_DIGITS, Python

TITLE = "byte-code of Python"
KIND = "base_bytecode"
_FORMAT = 2
# Checked by the source's time, which costs nothing and travels with layers: a later layer may have patched the library.
# Modules that have byte-code are left alone. An interpreter that lacks what this needs never gets any: the layer is
# empty for good. A module that is no valid Python is none of a program's; what the machine could not do is a failure.
_COMPILE = """
import os, sys
try:
    import compileall, concurrent.futures, importlib.util, py_compile, re, sysconfig
except ImportError as error:
    print(f"this Python has no byte-code and cannot make any: {error}")
    sys.exit(0)
here = sysconfig.get_paths()["stdlib"]
byte_code = importlib.util.cache_from_source
if not os.path.exists(byte_code(os.path.join(here, "os.py"))):
    left_out = re.compile(r"/(test|tests|idlelib|tkinter|turtledemo|lib2to3|site-packages|dist-packages)/")
    mode = py_compile.PycInvalidationMode.TIMESTAMP
    if not compileall.compile_dir(here, quiet=2, rx=left_out, workers=0, invalidation_mode=mode):
        for folder, _, names in os.walk(here):
            for path in (os.path.join(folder, name) for name in names if name.endswith(".py")):
                if not left_out.search(path) and not os.path.exists(byte_code(path)):
                    try:
                        py_compile.compile(path, doraise=True, invalidation_mode=mode)
                    except py_compile.PyCompileError:
                        pass
"""


def key_above(base: str) -> str:
    """Key of the layer, over a base with that key."""
    return digest({"base_bytecode": base, "format": _FORMAT})[:KEY_DIGITS]


async def make(room: Room, python: Python, on_line: OnLine) -> bool:
    """Fill the layer; it stays empty if the base has byte-code already. False: this time it could not be made, and what
    there is of it is no layer."""
    work = Work(
        command=[python.executable, "-I", "-B", "-c", _COMPILE],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        workdir="/",
        proxied=False,
    )
    try:
        await room.run(TITLE, work, on_line)
    except ImageBuildError as error:
        # Imports are slower without it, that is all: no reason to fail what somebody waits for.
        on_line(f"{TITLE} was not made, the next image on this base tries again: {error.message}")
        return False
    return True
