"""`squall.FilePatternMatcher`, for programs that import it from here."""

from squall.patterns import FilePatternMatcher

__all__ = ["FilePatternMatcher"]
