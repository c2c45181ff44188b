"""`ContainerProcess` where programs import it from: part of sandboxes, which squall does not have."""

from squall.sandbox import ContainerProcess

__all__ = ["ContainerProcess"]
