"""The commands about images, with their arguments and help."""

from __future__ import annotations

from typing import Any, Optional

import typer

from squall.cli.fleet_commands import CONTEXT, ENVIRONMENT, JSON

image_group = typer.Typer(help="Images that were built.", no_args_is_help=True, context_settings=CONTEXT)
IMAGE: Any = typer.Argument(..., metavar="IMAGE", help="Id (im-...), or the name that it was published under.")

DRY_RUN: Any = typer.Option(False, "--dry-run", help="Only say what would be removed.")
OLDER_THAN: Any = typer.Option(
    "1h", "--older-than", metavar="AGE", help="Only what was built and asked for before that: 30m, 12h, 7d; 0s for all."
)


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


@image_group.command("prune")
def image_prune(dry_run: bool = DRY_RUN, older_than: str = OLDER_THAN) -> int:
    """Remove images that nothing needs: no version of an app, no call, no container, no name. Of builders, of nodes
    and, where it can, of the registry."""
    import squall.cli.image_pruning as command

    return command.prune(dry_run=dry_run, older_than=older_than)


@image_group.command("logs")
def image_logs(image: str = IMAGE, environment: Optional[str] = ENVIRONMENT) -> int:
    """Show what the builds of an image printed, as far as it is kept (3 days)."""
    import squall.cli.images as command

    return command.logs(image, environment=environment)
