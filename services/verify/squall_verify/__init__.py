"""The verification harness: a real platform under attack, and the invariants that must hold. `squall verify`."""
