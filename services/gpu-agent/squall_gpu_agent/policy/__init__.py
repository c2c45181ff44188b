"""Agent policy: pure decisions on attempts, devices and templates. No I/O, no clock, no bus."""
