"""What web functions are called in addresses: host labels, by the name of app and function or as declared. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from squall.spec import FunctionSpec

MAX_LABEL = 63
"""Of one label in DNS."""
KEPT = 56
DEV = "-dev"
DEFAULT_ENVIRONMENT = "main"
_OTHERS = re.compile(r"[^a-z0-9]+")


def slug(text: str) -> str:
    """Lower-case letters, digits and single dashes."""
    return _OTHERS.sub("-", text.lower()).strip("-") or "app"


def host_label(owner: str, name: str, *, dev: bool) -> str:
    """`<owner>--<name>` with `-dev` for apps that run only as long as their client; longer ones end in a hash."""
    suffix = DEV if dev else ""
    long = f"{owner}--{name}"
    if len(long) + len(suffix) <= MAX_LABEL:
        return long + suffix
    digest = hashlib.sha256(long.encode()).hexdigest()[:6]
    return f"{long[: KEPT - len(suffix)].rstrip('-')}-{digest}{suffix}"


def owner_label(workspace: str, environment: str) -> str:
    """The workspace, with its environment unless that is the usual one."""
    return slug(workspace if environment == DEFAULT_ENVIRONMENT else f"{workspace}-{environment}")


def web_names(owner: str, app: str, specs: Iterable[FunctionSpec], *, dev: bool) -> Mapping[str, str]:
    """All names of an app's web functions: `function` or `Class.method` by host label and by custom domain."""
    found: dict[str, str] = {}
    for spec in specs:
        for method in spec.methods:
            if method.web is None:
                continue
            target = f"{spec.name}.{method.name}" if spec.is_class else spec.name
            plain = f"{app}-{spec.name}" + (f"-{method.name}" if spec.is_class else "")
            found[host_label(owner, method.web.label or slug(plain), dev=dev)] = target
            if not dev:
                found.update(dict.fromkeys(method.web.custom_domains, target))
    return found
