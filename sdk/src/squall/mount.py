"""`squall.Mount`, for programs that import it from here."""

from squall.mounts import Mount

__all__ = ["Mount"]
