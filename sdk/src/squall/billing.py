"""Bills, which squall does not have: the names can be imported, and say so when they are used."""

from squall.unimplemented import absent_module

__getattr__ = absent_module("squall.billing", {}, "squall runs on your machines; there is no bill.")
