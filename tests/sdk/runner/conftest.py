"""Fixtures of the runner's tests."""

from tests.sdk.runner.containers import images_dir, workshop

__all__ = ["images_dir", "workshop"]
