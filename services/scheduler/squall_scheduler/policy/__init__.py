"""Scheduler policy: pure decisions on placement, schedules and recovery. No I/O, no clock, no bus."""
