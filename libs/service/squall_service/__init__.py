"""How a service process lives: start, settings, telemetry, health, clock, drain. Knows no service."""
