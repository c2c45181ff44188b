"""Reads `.env` files. Imports python-dotenv, which only programs that have such a file need."""

from __future__ import annotations

import os

from squall.errors import InvalidError


def read_nearest(start: str, filename: str) -> dict[str, str]:
    """The values of the file in `start`, or of the nearest one above it. Raises `InvalidError` if there is none."""
    from dotenv import dotenv_values

    folder = start if os.path.isdir(start) else os.path.dirname(start)
    looked_in = folder
    while not os.path.isfile(os.path.join(folder, filename)):
        above = os.path.dirname(folder)
        if above == folder:
            raise InvalidError(
                f"there is no {filename} in {looked_in} or above it", fix="Make one, or give the path of its folder."
            )
        folder = above
    values = dotenv_values(os.path.join(folder, filename))
    return {name: value for name, value in values.items() if value is not None}
