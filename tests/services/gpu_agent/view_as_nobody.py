"""Enters a bundle view as an ordinary user and prints the files that it shows."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from squall_gpu_agent.backends.bundle_view import View, VolumeView, enter

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
volumes, points = [], home / "points"
for number, target in enumerate(("/volume-of-squall-test/deep", "/usr/share/squall-test/models")):
    folder = home / "volumes" / str(number)
    for name in ("lower", "upper", "work", "all"):
        (folder / name).mkdir(parents=True)
    (folder / "lower" / "weights.txt").write_text(f"weights{number}")
    (points / target[1:]).mkdir(parents=True)
    volumes.append(VolumeView(str(folder / "lower"), str(folder), target, read_only=number == 1))
enter(View(str(code), str(work), [str(home)], str(points), volumes))
print(Path("/data-of-squall-test/model.txt").read_text(), Path("/root/config/settings.txt").read_text())
for volume in volumes:
    print(Path(volume.target, "weights.txt").read_text())
    try:
        Path(volume.target, "weights.txt").write_text("changed")
    except OSError as error:
        print(error.strerror)
    print(sorted(os.listdir(Path(volume.folder, "upper"))), Path(volume.folder, "lower", "weights.txt").read_text())
