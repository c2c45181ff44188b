"""Functions that tell a hash of what they were given: the values themselves must stand nowhere."""

import hashlib
import os

import squall

app = squall.App("secretive", secrets=[squall.Secret.from_local_environ(["CANARY_OF_APP"])])
named = squall.Secret.from_name("canaries", required_keys=["CANARY_OF_NAME"])
AT_IMPORT = os.environ.get("CANARY_OF_NAME", "")


def hashed(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


@app.function(secrets=[named, squall.Secret.from_dict({"CANARY_OF_DICT": os.environ.get("CANARY_OF_DICT", "")})])
def told() -> dict[str, str]:
    names = ("CANARY_OF_APP", "CANARY_OF_NAME", "CANARY_OF_DICT")
    return {**{name: hashed(os.environ[name]) for name in names}, "at import": hashed(AT_IMPORT)}


@app.function(secrets=[named], single_use_containers=True)
def once() -> str:
    """In a new container each time."""
    return hashed(os.environ["CANARY_OF_NAME"])


@app.function(secrets=[named], single_use_containers=True)
def fails() -> None:
    raise ValueError("with the values of its frame in reach")
