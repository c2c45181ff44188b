"""Autoscaler policy: pure decisions on container counts. No I/O, no clock, no bus."""
