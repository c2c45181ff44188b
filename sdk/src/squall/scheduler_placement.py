"""Wishes where containers run, which squall does not have: the names can be imported, and say so when they are used."""

from squall.unimplemented import TOP_LEVEL, absent_module

__getattr__ = absent_module("squall.scheduler_placement", {}, TOP_LEVEL["SchedulerPlacement"])
