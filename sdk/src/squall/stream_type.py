"""`StreamType` where programs import it from: part of sandboxes, which squall does not have."""

from squall.sandbox import StreamType

__all__ = ["StreamType"]
