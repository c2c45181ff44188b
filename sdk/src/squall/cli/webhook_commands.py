"""The commands about webhooks, with their arguments and help."""

from __future__ import annotations

from typing import Optional

import typer

from squall.cli.fleet_commands import CONTEXT, JSON
from squall.errors import UsageError

webhook_group = typer.Typer(
    help="Webhooks: ends of calls, told to URLs.", no_args_is_help=True, context_settings=CONTEXT
)


def add_to(app: typer.Typer) -> None:
    """Make them commands of `squall`."""
    app.add_typer(webhook_group, name="webhook")


@webhook_group.command("list")
def webhook_list(
    dead: bool = typer.Option(False, "--dead", help="Only those that were given up."),
    pending: bool = typer.Option(False, "--pending", help="Only those that are still tried."),
    delivered: bool = typer.Option(False, "--delivered", help="Only those that were delivered (within a day)."),
    limit: int = typer.Option(50, "-n", "--limit", min=1, max=1000, help="How many at most."),
    as_json: bool = JSON,
) -> int:
    """List ends of calls on their way to webhooks, the newest first."""
    import squall.cli.webhooks as command

    chosen = [name for name, given in (("dead", dead), ("pending", pending), ("delivered", delivered)) if given]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other", fix="Use one of them.")
    return command.list_webhooks(state="".join(chosen), limit=limit, as_json=as_json)


@webhook_group.command("get")
def webhook_get(
    call: str = typer.Argument(..., metavar="CALL", help="Id of the call (fc-...)."), as_json: bool = JSON
) -> int:
    """Show what came of each try to tell the end of a call."""
    import squall.cli.webhooks as command

    return command.get(call, as_json=as_json)


@webhook_group.command("redrive")
def webhook_redrive(
    call: Optional[str] = typer.Argument(None, metavar="[CALL]", help="A call of `squall webhook list --dead`."),
    every: bool = typer.Option(False, "--all", help="Every webhook that was given up."),
) -> int:
    """Try webhooks again that were given up, with the same id and body, from the beginning of the schedule."""
    import squall.cli.webhooks as command

    return command.redrive(call, every=every)


@webhook_group.command("secret")
def webhook_secret(as_json: bool = JSON) -> int:
    """Show the key with which receivers verify signatures; it is made if there is none yet."""
    import squall.cli.webhooks as command

    return command.secret(rotate=False, as_json=as_json)


@webhook_group.command("rotate-secret")
def webhook_rotate_secret(as_json: bool = JSON) -> int:
    """Make a new key. For 24 hours requests are signed with the new one and the one before."""
    import squall.cli.webhooks as command

    return command.secret(rotate=True, as_json=as_json)
