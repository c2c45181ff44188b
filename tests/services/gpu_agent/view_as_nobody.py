"""Enters a bundle view as an ordinary user and prints the files that it shows."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from squall_gpu_agent.backends.bundle_view import View, enter

home = Path(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: who started as root may not write its own uid_map otherwise
code, work = home / "code", home / "work"
for name, text in (("root/config/settings.txt", "settings"), ("data-of-squall-test/model.txt", "model")):
    path = code / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
work.mkdir()
enter(View(str(code), str(work), [str(home)]))
print(Path("/data-of-squall-test/model.txt").read_text(), Path("/root/config/settings.txt").read_text())
