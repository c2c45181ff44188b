"""The commands about images, with their arguments and help."""

from __future__ import annotations

from typing import Any, Optional

import typer

from squall.cli.fleet_commands import CONTEXT, ENVIRONMENT, JSON

image_group = typer.Typer(help="Images that were built.", no_args_is_help=True, context_settings=CONTEXT)
IMAGE: Any = typer.Argument(..., metavar="IMAGE", help="Id (im-...), or the name that it was published under.")


def add_to(app: typer.Typer) -> None:
    """Make them commands of `squall`."""
    app.add_typer(image_group, name="image")


@image_group.command("list")
def image_list(environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON) -> int:
    """List images, those built last first."""
    import squall.cli.images as command

    return command.list_images(environment=environment, as_json=as_json)


@image_group.command("inspect")
def image_inspect(image: str = IMAGE, environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON) -> int:
    """Show the steps, packages and layers of an image, and why it failed if it did."""
    import squall.cli.images as command

    return command.inspect(image, environment=environment, as_json=as_json)


@image_group.command("logs")
def image_logs(image: str = IMAGE, environment: Optional[str] = ENVIRONMENT) -> int:
    """Show what the builds of an image printed, as far as it is kept (3 days)."""
    import squall.cli.images as command

    return command.logs(image, environment=environment)
