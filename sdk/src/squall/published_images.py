"""Images on the server: building one now, giving it a name, finding it by name or id."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Optional
from urllib.parse import quote

from squall import session
from squall.client import query
from squall.errors import ExecutionError, InvalidError, NotFoundError
from squall.http_api.routes import Route
from squall.spec import ImageSpec, from_wire

if TYPE_CHECKING:
    from squall.app import App
    from squall.image import Image

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def checked_name(name: str) -> str:
    """`name:tag` of `name` or `name:tag`. Raises `InvalidError`."""
    own, colon, tag = str(name).partition(":")
    if not _NAME.fullmatch(own) or (colon and not _NAME.fullmatch(tag)):
        raise InvalidError(
            f"{name!r} is not a name of an image",
            fix='Write "name" or "name:tag" of letters, digits, ".", "_" and "-".',
        )
    return f"{own}:{tag or 'latest'}"


def by_id(image_id: str) -> ImageSpec:
    """The recipe of an image that was built. Raises `NotFoundError`."""
    if not re.fullmatch(r"im-[0-9a-f]{24}", str(image_id)):
        raise InvalidError(f"{image_id!r} is not the id of an image", fix="`squall image list` has them.")
    return _spec(session.current().client.json("GET", Route.IMAGE.format(image=image_id)))


def by_name(name: str, environment: Optional[str]) -> ImageSpec:
    """The recipe of an image that was published. Raises `NotFoundError`."""
    here = session.current()
    path = query(Route.IMAGE_NAME.format(name=quote(name, safe="")), environment=environment or here.environment)
    return _spec(here.client.json("GET", path))


def _spec(answer: dict[str, Any]) -> ImageSpec:
    if not answer.get("spec"):
        raise NotFoundError(
            f"the recipe of image {answer.get('image')} was not kept", fix="Build it again with this version of squall."
        )
    return from_wire(ImageSpec, answer["spec"])


def build(image: Image, app: App) -> None:
    """Build it on the server of an app."""
    from squall import publish

    if app._state is None:
        raise ExecutionError(
            "Image.build needs an app that is running",
            fix='Call it within `app.run()`, or with `squall.App.lookup("name", create_if_missing=True)`.',
        )
    publish.build_images(app._state.session, [image])


def publish(image: Image, name: str, environment: Optional[str]) -> None:
    """Build it, then let the name mean it."""
    from squall import publish as publishing

    here = session.current()
    checked = checked_name(name)
    built = publishing.build_images(here, [image])
    path = query(Route.IMAGE_NAME.format(name=quote(checked, safe="")), environment=environment or here.environment)
    here.client.json("PUT", path, {"image": built[image.spec().id]})
