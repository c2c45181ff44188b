"""Every fault that the harness knows; importing this registers them."""

from squall_verify.faults import conditions, messages, processes, steps
from squall_verify.faults.registry import REGISTRY, Fault, Given, Hit, NotPossible, Site, fault

__all__ = [
    "REGISTRY",
    "Fault",
    "Given",
    "Hit",
    "NotPossible",
    "Site",
    "conditions",
    "fault",
    "messages",
    "processes",
    "steps",
]
