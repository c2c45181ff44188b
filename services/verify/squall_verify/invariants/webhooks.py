"""Webhooks: every end of a call that has one is told, as it was, by whoever may sign for its workspace (I25). Pure."""

from __future__ import annotations

from squall_verify.evidence import Evidence
from squall_verify.invariants.verdict import Findings, Looking


def told(evidence: Evidence) -> Findings:
    """I25: each recorded end of an input with a webhook was sent to its URL at least once; whatever was sent is signed,
    tells a recorded end, and is the same each time."""
    look = Looking()
    wanted = {each.key: each.webhook for each in evidence.accepted if each.webhook}
    recorded = {each.key: each.outcome for each in evidence.recorded}
    digests: dict[str, str] = {}
    arrived = set()
    for heard in evidence.state.heard:
        look.at(heard.id, heard.signed, "was sent without a valid signature")
        right_place = heard.url == wanted.get(heard.key)
        look.at(heard.id, right_place, f"was sent to {heard.url}; asked for was {wanted.get(heard.key, 'nothing')}")
        ended = recorded.get(heard.key, "no end")
        look.at(heard.id, heard.outcome == ended, f"tells {heard.outcome!r}, recorded is {ended!r}")
        look.at(heard.id, heard.id == f"{heard.key[0]}-{heard.key[1]}", f"tells of {heard.key}")
        look.at(heard.id, digests.setdefault(heard.id, heard.digest) == heard.digest, "was sent with different bodies")
        if heard.taken and right_place:
            arrived.add(heard.key)
    for key in wanted.keys() & recorded.keys():
        look.at(key, key in arrived, f"ended ({recorded[key]}), and its receiver never took that")
    return look.findings()
