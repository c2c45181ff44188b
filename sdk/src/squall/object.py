"""The base of handles elsewhere. Handles here have none in common: the name can be imported, and says so when used."""

from squall.unimplemented import absent_module

__getattr__ = absent_module("squall.object", {}, "Use `squall.Function`, `squall.Volume` and so on.")
