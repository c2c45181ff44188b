"""Where a group is, as a process sees it that is in a container itself or is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from squall_isolation.cgroups import mount_of

V1 = "42 30 0:31 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
V2 = "35 24 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


@pytest.mark.parametrize(
    ("line", "root", "group", "folder"),
    [
        (V1, "/", "/", "/sys/fs/cgroup/memory"),
        (V1, "/", "/system.slice/agent", "/sys/fs/cgroup/memory/system.slice/agent"),
        (V1, "/docker/0123", "/docker/0123", "/sys/fs/cgroup/memory"),
        (V1, "/docker/0123", "/docker/0123/inner", "/sys/fs/cgroup/memory/inner"),
        (V1, "/docker/01", "/docker/0123", "/sys/fs/cgroup/memory/docker/0123"),
        (V2, "/", "/", "/sys/fs/cgroup"),
        (V2, "/", "/user.slice", "/sys/fs/cgroup/user.slice"),
    ],
)
def test_a_group_lies_below_what_is_mounted_of_its_hierarchy(line: str, root: str, group: str, folder: str) -> None:
    mount = mount_of(line.format(root=root))
    assert mount.kind == ("cgroup" if line is V1 else "cgroup2")
    assert mount.root == root
    assert mount.folder_of(group) == Path(folder)
