"""`squall.Environment`, for programs that import it from here."""

from squall.environment import Environment

__all__ = ["Environment"]
