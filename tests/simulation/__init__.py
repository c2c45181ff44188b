"""Seeded simulation of the platform in virtual time. See README.md."""
