"""From the declarations of an app to an app on the server: bundles, images, specs, and the one request that counts.

Everything that can fail by the user's doing (a missing file, a failing build) fails before that request, so that a
deployed version is replaced in whole or not at all.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

from squall import bundle, output
from squall.app import App
from squall.app_on_server import AppState
from squall.class_source import DeclaredClass
from squall.client import BROKEN, Retry, query
from squall.cls import Cls
from squall.declaration import Declaration, is_async
from squall.errors import InvalidError, NotFoundError
from squall.errors import from_wire as error_from_wire
from squall.function import Function
from squall.http_api.apps import PublishApp, PublishedApp
from squall.http_api.routes import Route
from squall.http_api.traces import LogEntry
from squall.image import Image
from squall.image_steps import Finders
from squall.origin import Declared
from squall.payload import script_module
from squall.spec import (
    BucketMount,
    CodeRef,
    FunctionSpec,
    ImageSpec,
    MethodSpec,
    ParameterSpec,
    SecretRef,
    VolumeMount,
    from_wire,
    to_wire,
    validate,
)
from squall.web import spec_of
from squall.web_url import best

if TYPE_CHECKING:
    from squall.secret import Secret
    from squall.session import Session

BUILD_SILENCE_S = 120.0
LOG_FIELDS = frozenset(LogEntry.__dataclass_fields__)


class Published(NamedTuple):
    """The answer, in the form that an app keeps."""

    state: AppState
    unchanged: bool


class _Part(NamedTuple):
    """One function or class on its way."""

    name: str
    raw: Any
    declaration: Declaration
    image: Image
    include_source: bool
    handle: Union[Function, Cls]

    @property
    def in_script(self) -> bool:
        """Whether its containers import the user's `__main__`."""
        return self.raw.__module__ == "__main__" and not self.declaration.serialized


class Release(NamedTuple):
    """How functions get to a server that has earlier ones."""

    into: Optional[str] = None
    """Id of an ephemeral app that runs, whose functions are replaced."""
    tag: str = ""
    """Of a deployed version."""
    strategy: str = "rolling"


PLAINLY = Release()


def publish(
    app: App,
    session: Session,
    mode: str,
    name: str,
    environment: str,
    release: Release = PLAINLY,
) -> Published:
    """Make the app exist on the server. `mode`: see `PublishApp`."""
    session.client.info()
    parts = list(_parts(app))
    if any(part.declaration.webhook for part in parts):
        from squall.invoke import require_webhooks

        require_webhooks(session.client.info())
    codes = _upload(session, parts)
    build_images(session, [part.image for part in parts])
    secrets = _Secrets(session, environment)
    specs = tuple(
        validate(
            replace(
                _spec(part, codes[part.name]),
                secrets=secrets.of(part.declaration),
                volumes=_volumes(part.declaration, session, environment),
                buckets=_buckets(part.declaration, secrets),
            )
        )
        for part in parts
    )
    request = PublishApp(
        name=name,
        functions=specs,
        mode=mode,
        environment=environment,
        tags=app.tags,
        app_id=release.into,
        replaces=release.into is not None,
        tag=release.tag,
        strategy=release.strategy,
    )
    answer = from_wire(PublishedApp, session.client.json("POST", Route.APPS, to_wire(request)))
    for address in answer.web:
        name = f"{address.function}.{address.method}" if address.method else address.function
        output.current().web_function(name, best(address), address.requires_proxy_auth)
    script = script_module() if any(part.in_script for part in parts) else None
    if script is not None:
        # What containers send back names classes of the script by this module: here it is `__main__`.
        sys.modules.setdefault(script, sys.modules["__main__"])
    return Published(AppState(session, answer.app_id, answer.version, dict(answer.functions), script), answer.unchanged)


def lookup(name: str, session: Session, environment: Optional[str], create: bool) -> App:
    """A deployed app by name or id; made if it is missing and that is wanted."""
    place = environment or session.environment
    path = query(Route.APP_STATUS.format(app=name), environment=place)
    try:
        found = session.client.json("GET", path)
        if found["state"] == "stopped":
            raise NotFoundError(f"app {name!r} is stopped", fix="Deploy it again.")
        app_id, own_name = found["app_id"], found["name"]
    except NotFoundError:
        if not create:
            raise
        request = PublishApp(name=name, functions=(), mode="deployed", environment=place, only_new=True)
        app_id, own_name = session.client.json("POST", Route.APPS, to_wire(request))["app_id"], name
    app = App()
    app._name = own_name  # not as an argument: it declares no second app of that name
    app._state = AppState(session, app_id, 0, {}, None)
    return app


def _parts(app: App) -> Iterator[_Part]:
    for name, function in app.registered_functions.items():
        origin = function._origin
        assert isinstance(origin, Declared)
        yield _part(origin.app, name, origin.raw, origin.declaration, function)
    for name, handle in app.registered_classes.items():
        source = handle._source
        assert isinstance(source, DeclaredClass)
        yield _part(source.app, name, handle._squall_raw(), handle.declaration, handle)


def _part(declaring: App, name: str, raw: Any, declaration: Declaration, handle: Union[Function, Cls]) -> _Part:
    image = declaration.image or declaring.image or Image.debian_slim()
    if not isinstance(image, Image):
        raise InvalidError(f"image of {name} must be a squall.Image, got {type(image).__name__}")
    for mount in declaration.mounts:
        image = mount.attached_to(image)
    include = declaring.include_source if declaration.include_source is None else declaration.include_source
    if declaration.least_isolation() == "process":
        image = image.of_function()
    return _Part(name, raw, declaration, image, include, handle)


def _upload(session: Session, parts: list[_Part]) -> dict[str, CodeRef]:
    """The code of every part; what several have in common is uploaded once."""
    uploaded: dict[frozenset[tuple[str, str]], tuple[str, int]] = {}
    codes = {}
    with tempfile.TemporaryDirectory(prefix="squall-serialized-") as folder:
        for part in parts:
            source, qualname = _source(part, folder)
            files = {**source.files, **bundle.local_files(part.image)}
            key = frozenset(files.items())
            if key not in uploaded:
                with bundle.zipped(files) as archive:
                    session.client.upload(archive.sha256, archive.body)
                    uploaded[key] = (archive.sha256, archive.body.size)
            sha256, size = uploaded[key]
            codes[part.name] = CodeRef(sha256, source.module, qualname, size)
    return codes


def _source(part: _Part, folder: str) -> tuple[bundle.Source, str]:
    """The files of a part, and what it is called in its module. `folder` is for files that are made."""
    if not part.declaration.serialized:
        return bundle.source_of(part.raw, part.include_source), part.raw.__qualname__
    from squall import serialized

    return serialized.source_of(part.raw, folder, part.image.spec().python_version), serialized.NAME


def local_files(app: App) -> set[str]:
    """Paths of everything on this machine that is sent to the app's containers."""
    found: set[str] = set()
    for part in _parts(app):
        own = {} if part.declaration.serialized else bundle.source_of(part.raw, part.include_source).files
        found.update({**own, **bundle.local_files(part.image)}.values())
    return found


def build_images(session: Session, images: Sequence[Image]) -> dict[str, str]:
    """Have every image built, equal ones once; images that exist answer at once. Ids of the server by those of here."""
    shown, built = output.current(), {}
    find = Finders(
        _Secrets(session, session.environment).reference,
        lambda path, volume: volume.mount_at(path, session, session.environment),
    )
    for image_id, image in {image.spec().id: image for image in images}.items():
        spec = image.spec(find)
        for files in image.copied:
            with files.zipped() as archive:
                session.client.upload(archive.sha256, archive.body)
        steps = ", ".join(step.kind for step in spec.steps) or "no packages"
        shown.image_building(image_id, f"Python {spec.python_version}, {steps}" if spec.python_version else steps)
        built[image_id] = _build_one(session, image_id, spec)
        shown.image_ready(image_id)
    return built


def _build_one(session: Session, image_id: str, spec: ImageSpec) -> str:
    body = json.dumps({"image": to_wire(spec), "environment": session.environment}).encode()
    headers, retry = {"Content-Type": "application/json"}, Retry(session.client)
    while True:
        try:
            with session.client.stream("POST", Route.IMAGES, headers, body, BUILD_SILENCE_S) as stream:
                for line in stream.lines():
                    retry.progress()
                    if "error" in line:
                        raise error_from_wire(line["error"])
                    if "image" in line:
                        return str(line["image"])
                    output.current().image_log(image_id, log_entry(line))
            raise EOFError("the build ended without a result")
        except BROKEN as error:
            retry.wait(error)


def log_entry(line: dict[str, Any]) -> LogEntry:
    """A log line; fields of a newer server are left out."""
    return LogEntry(**{name: value for name, value in line.items() if name in LOG_FIELDS})


def _spec(part: _Part, code: CodeRef) -> FunctionSpec:
    declared, handle, image = part.declaration, part.handle, part.image.spec()
    if isinstance(handle, Cls):
        methods: tuple[MethodSpec, ...] = handle.method_specs()
        parameters = tuple(map(_as_json, handle.parameter_specs()))
    else:
        methods, parameters = (MethodSpec("", handle.is_generator, is_async(part.raw), spec_of(part.raw)),), ()
    return validate(
        FunctionSpec(
            name=part.name,
            code=code,
            image=image,
            methods=methods,
            is_class=isinstance(handle, Cls),
            parameters=parameters,
            resources=declared.resources(),
            scaling=declared.scaling(),
            retry=declared.retry(),
            timeout_s=declared.timeout_s(),
            startup_timeout_s=declared.startup_timeout_s(),
            env=declared.variables(),
            batching=declared.batching(),
            single_use=declared.single_use,
            nonpreemptible=declared.must_stay(),
            schedule=declared.schedule.spec() if declared.schedule else None,
            use_template=declared.templates(),
            memory_snapshot=declared.snapshots(),
            isolation=declared.least_isolation(image),
            block_network=declared.blocks_network(),
            outbound_cidr_allowlist=declared.outbound(),
            webhook=declared.told(),
        )
    )


class _Secrets:
    """References of what functions declare; values of one secret go up once."""

    def __init__(self, session: Session, environment: str) -> None:
        self._session, self._environment = session, environment
        self._known: dict[int, SecretRef] = {}

    def of(self, declared: Declaration) -> tuple[SecretRef, ...]:
        """Those of its app, then the function's own."""
        return tuple(map(self.reference, declared.check_secrets("the function")))

    def reference(self, secret: Secret) -> SecretRef:
        """Where one is."""
        if id(secret) not in self._known:
            self._known[id(secret)] = secret.reference(self._session, self._environment)
        return self._known[id(secret)]


def _volumes(declared: Declaration, session: Session, environment: str) -> tuple[VolumeMount, ...]:
    """Its mounts; volumes that are not there yet are made, where that was asked for."""
    return tuple(volume.mount_at(path, session, environment) for path, volume in declared.mounted_volumes().items())


def _buckets(declared: Declaration, secrets: _Secrets) -> tuple[BucketMount, ...]:
    mounts = declared.mounted_buckets().items()
    return tuple(bucket.mount_at(path, secrets.reference) for path, bucket in mounts)


def _as_json(parameter: ParameterSpec) -> ParameterSpec:
    """JSON has no bytes: a default of that type is tagged, as parameters are in the header of a call."""
    if not isinstance(parameter.default, bytes):
        return parameter
    return replace(parameter, default={"b64": base64.b64encode(parameter.default).decode()})


def ephemeral_name(app: App, wanted: Optional[str]) -> str:
    """The name that an app has while its program runs. A name that cannot be deployed is spelt so that it is one."""
    name = wanted or default_name(app)
    return re.sub("^(ap-)+", "", re.sub("[^A-Za-z0-9._-]+", "-", name))[:64] or "app"


def default_name(app: App) -> str:
    """The name of an app that has none: the file of its first function."""
    for part in _parts(app):
        module: Optional[str] = part.raw.__module__
        named = script_module() if module == "__main__" else module
        return (named or "app").rpartition(".")[2]
    return "app"
