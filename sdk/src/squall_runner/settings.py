"""What the agent tells a runner in its SETUP frame. Plain data; the agent writes the same names as JSON."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional


class Method(NamedTuple):
    """One callable of the function or class, as declared."""

    name: str
    is_generator: bool
    is_async: bool
    web: Optional[dict[str, Any]] = None
    """The fields of `squall.spec.WebSpec` if it answers web requests; then it cannot be called otherwise."""


class Settings(NamedTuple):
    """The fields of SETUP. A forked container gets the ones that differ from its template's."""

    module: str
    """Import name of the user's module; "" for a bare interpreter, which only waits to be forked."""
    qualname: str
    is_class: bool
    methods: list[Method]
    code_root: str
    """Folder that the user's modules are imported from: `/root`, or where it really lies."""
    code_dir: str
    """Prefix to cut from file names in tracebacks, so that they read as in the container; "" for none."""
    site_packages: list[str]
    prefix: str
    """The image's environment, for `sys.prefix`; "" to leave it."""
    picklers: str
    """Folder with cloudpickle and msgpack, last on the path."""
    cwd: str
    scratch: str
    """Folder for payloads over the inline limit."""
    env: dict[str, str]
    """Variables that are set before anything of the user's is imported."""
    whole_env: bool
    """`env` is all of the environment: this process was forked from one that had another."""
    unset: list[str]
    """Variables that only the template needed."""
    max_inputs: int
    batch_size: int
    """Inputs that one call of the code takes at most; 0 if it takes one, not in a list."""
    batch_wait_ms: int
    params: Optional[dict[str, Any]]
    template: bool
    """This process only imports, then forks on request."""
    snapshot: bool
    """A template also makes the instance and runs the `@enter(snap=True)` hooks: forks have what they left."""
    web_key: str
    """With which this container offers connections for web requests."""
    volumes: list[dict[str, Any]]
    """Fields of `squall_runner.volumes.Mount`."""
    slot_capabilities: int
    """For templates whose forks enter namespaces: what these keep, as a mask."""
    slot_filter: str
    """Likewise: the filter of system calls that they set, in base64."""


def parse(meta: dict[str, Any]) -> Settings:
    """The settings in a SETUP frame; fields that an older agent does not send have neutral values."""
    values = {**NEUTRAL, **{name: value for name, value in meta.items() if name in Settings._fields}}
    values["methods"] = [Method(m["name"], m["is_generator"], m["is_async"], m.get("web")) for m in values["methods"]]
    return Settings(**values)


NEUTRAL: dict[str, Any] = {
    "module": "",
    "qualname": "",
    "code_root": "",
    "cwd": "/",
    "scratch": "",
    "is_class": False,
    "methods": [],
    "code_dir": "",
    "site_packages": [],
    "prefix": "",
    "picklers": "",
    "env": {},
    "whole_env": False,
    "unset": [],
    "max_inputs": 1,
    "batch_size": 0,
    "batch_wait_ms": 0,
    "params": None,
    "template": False,
    "snapshot": False,
    "web_key": "",
    "volumes": [],
    "slot_capabilities": 0,
    "slot_filter": "",
}
