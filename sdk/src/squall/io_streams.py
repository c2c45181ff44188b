"""`StreamReader` and `StreamWriter` where programs import them from: parts of sandboxes, which squall does not have."""

from squall.sandbox import StreamReader, StreamWriter

__all__ = ["StreamReader", "StreamWriter"]
