"""Volumes in a build step: the builder commits them when the step has ended, and nothing else can."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Optional

from squall.objects import Place

if TYPE_CHECKING:
    from squall.volume import Volume

VARIABLE = "SQUALL_BUILD_VOLUMES"
"""What is mounted, as JSON: id, name, environment and version of each."""


def version_of(volume: Volume) -> Optional[int]:
    """The version that the step began with; None where this is no build step, or one without this volume."""
    told = os.environ.get(VARIABLE)
    if not told:
        return None
    source = volume._source
    for each in json.loads(told):
        if isinstance(source, Place):
            same = each["name"] == source.name and source.environment in (None, each["environment"])
        else:
            same = each["id"] == volume._id
        if same:
            return int(each["version"])
    return None
