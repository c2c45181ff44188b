"""Gateway policy: pure decisions on admission. No I/O, no clock, no bus."""
