"""Read by every Python process that has this folder on its path: arms the seeded bugs in services of the harness.

Which bugs are on is read when their code runs (a file of the bug's name in the folder SEEDED_BUGS), so that one
platform can have one after the other. Refuses to run anywhere but below the process that made that folder.
"""

import os
import sys


def above(pid):
    """Parent, its parent, and so on."""
    while pid > 1:
        yield pid
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])


folder = os.environ.get("SEEDED_BUGS")
if folder:
    try:
        with open(os.path.join(folder, "harness")) as file:
            harness = int(file.read())
    except (OSError, ValueError):
        harness = 0
    if harness not in above(os.getpid()):
        sys.exit("seeded bugs are for tests/chaos/test_seeded_bugs.py; unset SEEDED_BUGS")
    import seeded_bugs

    sys.meta_path.insert(0, seeded_bugs.Patching(folder))
