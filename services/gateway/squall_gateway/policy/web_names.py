"""What web functions are called in addresses: host labels, by the name of app and function or as declared; which names
nobody may have. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from squall.errors import InvalidError
from squall.spec import FunctionSpec, MethodSpec

MAX_LABEL = 63
"""Of one label in DNS."""
KEPT = 56
DEV = "-dev"
DEFAULT_ENVIRONMENT = "main"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"(?=.{4,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]")
_OTHERS = re.compile(r"[^a-z0-9]+")


def slug(text: str) -> str:
    """Lower-case letters, digits and single dashes."""
    return _OTHERS.sub("-", text.lower()).strip("-") or "app"


def is_platforms(host: str, domain: str) -> bool:
    """Whether a host is the platform's own: its API's, or below it, where only labels are given out."""
    return host == domain or host.endswith(f".{domain}")


def check_web(spec: FunctionSpec, domain: str) -> None:
    """Refuse names that cannot be hosts, and those of the platform itself: whoever has its name gets its clients'
    requests, and their tokens. Raises `InvalidError`."""
    for web in (method.web for method in spec.methods):
        if web is None:
            continue
        if web.label and not _LABEL.fullmatch(web.label):
            raise InvalidError(f"function {spec.name!r}: label {web.label!r} cannot be part of a host name")
        for wanted in web.custom_domains:
            if not _DOMAIN.fullmatch(wanted):
                raise InvalidError(f"function {spec.name!r}: custom domain {wanted!r} is not a host name in lower case")
            if is_platforms(wanted, domain):
                raise InvalidError(
                    f"function {spec.name!r}: the custom domain {wanted!r} belongs to the platform",
                    fix="Use `label=` for a name below it, or a domain of your own.",
                )


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


def target_of(spec: FunctionSpec, method: MethodSpec) -> str:
    """`function` or `Class.method`; a server, which has no method, is its class."""
    return f"{spec.name}.{method.name}" if method.name else spec.name


def web_names(owner: str, app: str, specs: Iterable[FunctionSpec], *, dev: bool) -> Mapping[str, str]:
    """All names of an app's web functions: `function` or `Class.method` by host label and by custom domain."""
    found: dict[str, str] = {}
    for spec in specs:
        for method in spec.methods:
            if method.web is None:
                continue
            target = target_of(spec, method)
            plain = f"{app}-{spec.name}" + (f"-{method.name}" if method.name else "")
            found[host_label(owner, method.web.label or slug(plain), dev=dev)] = target
            if not dev:
                found.update(dict.fromkeys(method.web.custom_domains, target))
    return found
