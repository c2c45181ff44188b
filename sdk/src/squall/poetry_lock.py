"""What `poetry install` would install, from pyproject.toml and poetry.lock, as requirements for uv."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from squall.errors import InvalidError


class Groups(NamedTuple):
    """Which groups of dependencies are wanted."""

    with_: Sequence[str] = ()
    without: Sequence[str] = ()
    only: Sequence[str] = ()

    def of(self, poetry: Mapping[str, Any]) -> set[str]:
        """Their names. Raises `InvalidError` for one that the project does not have."""
        groups = poetry.get("group", {})
        known = {"main", *groups, *(["dev"] if "dev-dependencies" in poetry else [])}
        for name in {*self.with_, *self.without, *self.only} - known:
            raise InvalidError(f"the project has no group {name!r} of dependencies; it has {sorted(known)}")
        if self.only:
            return set(self.only)
        wanted = {name for name in known if not groups.get(name, {}).get("optional", False)}
        return (wanted | set(self.with_)) - set(self.without)


def requirements(project: Mapping[str, Any], lock: Optional[Mapping[str, Any]], groups: Groups) -> str:
    """Lines `name==version ; marker` of what the lock has for those groups; without a lock, of what is declared."""
    poetry = project.get("tool", {}).get("poetry", {})
    wanted = groups.of(poetry)
    roots = dict(_roots(project, poetry, wanted))
    if lock is None:
        return "".join(f"{line}\n" for line in sorted(_declared(project, poetry, wanted)))
    packages: dict[str, list[Mapping[str, Any]]] = {}
    for package in lock.get("package", []):
        packages.setdefault(_normal(package["name"]), []).append(package)
    markers: dict[str, set[str]] = {}
    for name, marker in roots.items():
        _reach(name, marker, packages, markers)
    lines = [_line(package, markers[name]) for name in sorted(markers) for package in packages.get(name, ())]
    return "".join(f"{line}\n" for line in lines)


def _roots(project: Mapping[str, Any], poetry: Mapping[str, Any], wanted: set[str]) -> Iterator[tuple[str, str]]:
    """Names of direct dependencies, each with the marker that it has."""
    for line in project.get("project", {}).get("dependencies", []) if "main" in wanted else []:
        requirement, _, marker = line.partition(";")
        found = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
        if found:
            yield _normal(found.group()), marker.strip()
    for name, value in _tables(poetry, wanted):
        yield _normal(name), str(value.get("markers", "")) if isinstance(value, Mapping) else ""


def _tables(poetry: Mapping[str, Any], wanted: set[str]) -> Iterator[tuple[str, Any]]:
    tables = [poetry.get("dependencies", {})] if "main" in wanted else []
    tables += [poetry.get("dev-dependencies", {})] if "dev" in wanted else []
    tables += [group.get("dependencies", {}) for name, group in poetry.get("group", {}).items() if name in wanted]
    for table in tables:
        for name, value in table.items():
            optional = isinstance(value, Mapping) and value.get("optional", False)
            if name.lower() != "python" and not optional:
                yield name, value


def _reach(
    name: str, marker: str, packages: Mapping[str, list[Mapping[str, Any]]], markers: dict[str, set[str]]
) -> None:
    """Everything that a dependency brings, each with the conditions under which it does."""
    known = markers.setdefault(name, set())
    if marker in known or "" in known:
        return
    known.add(marker)
    for package in packages.get(name, ()):
        for other, value in package.get("dependencies", {}).items():
            for one in value if isinstance(value, list) else [value]:
                own = str(one.get("markers", "")) if isinstance(one, Mapping) else ""
                if isinstance(one, Mapping) and one.get("optional", False):
                    continue
                _reach(_normal(other), _both(marker, own), packages, markers)


def _both(one: str, other: str) -> str:
    if not one or not other or one == other:
        return one or other
    return f"({one}) and ({other})" if other not in one else one


def _line(package: Mapping[str, Any], reached: set[str]) -> str:
    own = package.get("markers", "")
    marker = own if isinstance(own, str) else own.get("main", "")
    if not marker and "" not in reached:
        marker = " or ".join(f"({one})" for one in sorted(reached))
    source = package.get("source", {})
    at = f" @ git+{source['url']}@{source['resolved_reference']}" if source.get("type") == "git" else ""
    if source.get("type") in ("directory", "file"):
        raise InvalidError(
            f"poetry.lock takes {package['name']} from this machine, which the builder does not have",
            fix="Attach your own code with `add_local_python_source`.",
        )
    line = f"{package['name']}{at}" if at else f"{package['name']}=={package['version']}"
    return f"{line} ; {marker}" if marker else line


def _declared(project: Mapping[str, Any], poetry: Mapping[str, Any], wanted: set[str]) -> Iterator[str]:
    yield from project.get("project", {}).get("dependencies", []) if "main" in wanted else []
    for name, value in _tables(poetry, wanted):
        version = value.get("version", "*") if isinstance(value, Mapping) else value
        marker = value.get("markers", "") if isinstance(value, Mapping) else ""
        if not isinstance(version, str):
            raise InvalidError(f"the dependency {name} has several versions; only a lock file tells which is meant")
        yield f"{name}{_range(version)}" + (f" ; {marker}" if marker else "")


def _range(version: str) -> str:
    """Poetry's `^1.2` and `~1.2` as ranges of requirements."""
    version = version.strip()
    if version in ("*", ""):
        return ""
    if version[0] not in "^~":
        return version if version[0] in "<>=!" else f"=={version}"
    parts = [int(part) for part in re.findall(r"\d+", version)[:3]]
    if version[0] == "~":
        at = 0 if len(parts) == 1 else 1
    else:
        at = next((index for index, part in enumerate(parts) if part), len(parts) - 1)
    above = [*parts[:at], parts[at] + 1]
    return f">={'.'.join(map(str, parts))},<{'.'.join(map(str, above))}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
