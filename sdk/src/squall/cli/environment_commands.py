"""The commands about environments, with their arguments and help."""

from __future__ import annotations

from typing import Any, Optional

import typer

from squall.cli.fleet_commands import CONTEXT, JSON, YES

environment_group = typer.Typer(
    help="Environments: parts of a workspace in which names are apart.", no_args_is_help=True, context_settings=CONTEXT
)
NAME: Any = typer.Argument(..., metavar="NAME", help="Its name.")


def add_to(app: typer.Typer) -> None:
    """Make them commands of `squall`."""
    app.add_typer(environment_group, name="environment")


@environment_group.command("create")
def environment_create(
    name: str = NAME,
    restricted: bool = typer.Option(False, "--restricted", help="Is refused: what a token may is said by its role."),
    as_json: bool = JSON,
) -> int:
    """Make an environment."""
    import squall.cli.environments as command

    return command.create(name, restricted=restricted, as_json=as_json)


@environment_group.command("update")
def environment_update(
    name: str = NAME,
    new_name: Optional[str] = typer.Option(None, "--set-name", help="Is not possible."),
    suffix: Optional[str] = typer.Option(None, "--set-web-suffix", help="Is not possible."),
) -> int:
    """Is not possible; the error says what to do instead."""
    import squall.cli.environments as command

    return command.update(name, new_name, suffix)


@environment_group.command("list")
def environment_list(as_json: bool = JSON) -> int:
    """List the environments of the workspace; every one has main."""
    import squall.cli.environments as command

    return command.list_environments(as_json=as_json)


@environment_group.command("delete")
def environment_delete(name: str = NAME, yes: bool = YES, as_json: bool = JSON) -> int:
    """Remove an environment. It must be empty: the refusal names what is in it. On a terminal it asks first."""
    import squall.cli.environments as command

    return command.delete(name, yes=yes, as_json=as_json)


@environment_group.command("rename")
def environment_rename(
    name: str = NAME, new_name: str = typer.Argument(..., metavar="NEW", help="Its new name.")
) -> int:
    """Is not possible; the error says what to do instead."""
    import squall.cli.environments as command

    return command.rename(name, new_name)
