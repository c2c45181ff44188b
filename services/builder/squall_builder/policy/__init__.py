"""Builder policy: pure decisions on layers and cache keys. No I/O, no clock, no bus."""
