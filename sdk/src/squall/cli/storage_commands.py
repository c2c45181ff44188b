"""The commands about what programs keep on the server, with their arguments and help."""

from __future__ import annotations

from typing import Any, Optional

import typer

from squall.cli.fleet_commands import APP, APP_OPTION, CONTEXT, ENVIRONMENT, JSON, YES

secret_group = typer.Typer(
    help="Secrets: encrypted environment variables.", no_args_is_help=True, context_settings=CONTEXT
)
schedule_group = typer.Typer(
    help="Schedules: what is called by itself, and when.", no_args_is_help=True, context_settings=CONTEXT
)
dict_group = typer.Typer(help="Dicts: shared keys and values.", no_args_is_help=True, context_settings=CONTEXT)
queue_group = typer.Typer(help="Queues: shared items in order.", no_args_is_help=True, context_settings=CONTEXT)
volume_group = typer.Typer(help="Volumes: files on the server.", no_args_is_help=True, context_settings=CONTEXT)
DRY_RUN: Any = typer.Option(False, "--dry-run", help="Only say what would be freed.")
REMOTE: Any = typer.Argument("/", metavar="PATH", help="Path in the volume.")
RECURSIVE: Any = typer.Option(False, "-r", "--recursive", help="Folders with all that is in them.")
NAME: Any = typer.Argument(..., metavar="NAME", help="Its name.")
ALLOW_MISSING: Any = typer.Option(False, "--allow-missing", help="It is no error if there is none.")
PARTITION: Any = typer.Option(None, "-p", "--partition", help="Partition (default: the one without a name).")
FUNCTION: Any = typer.Argument(..., metavar="FUNCTION", help="Name of the function.")
SECRET: Any = typer.Argument(..., metavar="NAME", help="Name of the secret.")
VALUES: Any = typer.Argument(None, metavar="KEY=VALUE", help="Variables.")


def add_to(app: typer.Typer) -> None:
    """Make them commands of `squall`."""
    app.add_typer(secret_group, name="secret")
    app.add_typer(schedule_group, name="schedule")
    app.add_typer(dict_group, name="dict")
    app.add_typer(queue_group, name="queue")
    app.add_typer(volume_group, name="volume")


@secret_group.command("create")
def secret_create(
    name: str = SECRET,
    values: Optional[list[str]] = VALUES,
    from_dotenv: Optional[str] = typer.Option(None, "--from-dotenv", metavar="FILE", help="Values of a .env file."),
    from_json: Optional[str] = typer.Option(
        None, "--from-json", metavar="FILE", help="Values of a JSON object; - is standard input."
    ),
    force: bool = typer.Option(False, "--force", help="Replace all values if it is there."),
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """Make a secret. Its values are encrypted on the server and are shown nowhere again."""
    import squall.cli.secrets as command

    return command.create(
        name,
        values or [],
        from_dotenv=from_dotenv,
        from_json=from_json,
        force=force,
        environment=environment,
        as_json=as_json,
    )


@secret_group.command("update")
def secret_update(
    name: str = SECRET,
    values: Optional[list[str]] = VALUES,
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """Set some values of a secret (KEY= removes one). Containers that start from now on see it."""
    import squall.cli.secrets as command

    return command.update(name, values or [], environment=environment, as_json=as_json)


@secret_group.command("list")
def secret_list(environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON) -> int:
    """List secrets and their keys; values are shown nowhere."""
    import squall.cli.secrets as command

    return command.list_secrets(environment=environment, as_json=as_json)


@secret_group.command("delete")
def secret_delete(
    name: str = SECRET,
    yes: bool = YES,
    allow_missing: bool = ALLOW_MISSING,
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """Remove a secret. Functions that declare it cannot start until there is one again. On a terminal it asks first."""
    import squall.cli.secrets as command

    return command.delete(name, yes=yes, allow_missing=allow_missing, environment=environment, as_json=as_json)


# ---------------------------------------------------------------- schedules


@schedule_group.command("list")
def schedule_list(
    name: Optional[str] = APP_OPTION, environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON
) -> int:
    """List schedules: when they are due next, how many ticks were called and missed."""
    import squall.cli.schedules as command

    return command.list_schedules(app=name, environment=environment, as_json=as_json)


@schedule_group.command("run-now")
def schedule_run_now(
    name: str = APP, function: str = FUNCTION, environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON
) -> int:
    """Call the function of a schedule now; its ticks stay as they are."""
    import squall.cli.schedules as command

    return command.run_now(name, function, environment=environment, as_json=as_json)


@schedule_group.command("pause")
def schedule_pause(
    name: str = APP, function: str = FUNCTION, environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON
) -> int:
    """Stop the ticks of a schedule until it is resumed; also over deploys that leave it as it is."""
    import squall.cli.schedules as command

    return command.pause(name, function, environment=environment, as_json=as_json)


@schedule_group.command("resume")
def schedule_resume(
    name: str = APP, function: str = FUNCTION, environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON
) -> int:
    """Let a schedule tick again. What was due while it was paused is not made up for."""
    import squall.cli.schedules as command

    return command.resume(name, function, environment=environment, as_json=as_json)


# ---------------------------------------------------------------- dicts


@dict_group.command("create")
def dict_create(name: str = NAME, environment: Optional[str] = ENVIRONMENT) -> int:
    """Make an empty dict."""
    import squall.cli.objects as command

    return command.create("dict", name, environment=environment)


@dict_group.command("list")
def dict_list(environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON) -> int:
    """List dicts."""
    import squall.cli.objects as command

    return command.list_objects("dict", environment=environment, as_json=as_json)


@dict_group.command("get")
def dict_get(
    name: str = NAME,
    key: str = typer.Argument(..., metavar="KEY", help="The key; only keys that are text can be given here."),
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Print the value of a key."""
    import squall.cli.objects as command

    return command.get(name, key, environment=environment)


@dict_group.command("items")
def dict_items(
    name: str = NAME,
    number: int = typer.Argument(20, metavar="[N]", min=1, help="How many."),
    everything: bool = typer.Option(False, "-a", "--all", help="All of them."),
    as_repr: bool = typer.Option(False, "-r", "--repr", help="As Python writes them: text in quotes, and in full."),
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """Print keys and values."""
    import squall.cli.objects as command

    number_of = None if everything else number
    return command.items(name, number_of, as_repr=as_repr, environment=environment, as_json=as_json)


@dict_group.command("clear")
def dict_clear(name: str = NAME, yes: bool = YES, environment: Optional[str] = ENVIRONMENT) -> int:
    """Remove all keys."""
    import squall.cli.objects as command

    return command.clear_dict(name, yes=yes, environment=environment)


@dict_group.command("delete")
def dict_delete(
    name: str = NAME, yes: bool = YES, allow_missing: bool = ALLOW_MISSING, environment: Optional[str] = ENVIRONMENT
) -> int:
    """Remove a dict with all that is in it."""
    import squall.cli.objects as command

    return command.delete("dict", name, yes=yes, allow_missing=allow_missing, environment=environment)


# ---------------------------------------------------------------- queues


@queue_group.command("create")
def queue_create(name: str = NAME, environment: Optional[str] = ENVIRONMENT) -> int:
    """Make an empty queue."""
    import squall.cli.objects as command

    return command.create("queue", name, environment=environment)


@queue_group.command("list")
def queue_list(environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON) -> int:
    """List queues."""
    import squall.cli.objects as command

    return command.list_objects("queue", environment=environment, as_json=as_json)


@queue_group.command("peek")
def queue_peek(
    name: str = NAME,
    number: int = typer.Argument(1, metavar="[N]", min=1, help="How many."),
    partition: Optional[str] = PARTITION,
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Print the first items, without taking them."""
    import squall.cli.objects as command

    return command.peek(name, number, partition=partition, environment=environment)


@queue_group.command("len")
def queue_len(
    name: str = NAME,
    partition: Optional[str] = PARTITION,
    total: bool = typer.Option(False, "-t", "--total", help="Of all partitions."),
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Print how many items there are."""
    import squall.cli.objects as command

    return command.length(name, partition=partition, total=total, environment=environment)


@queue_group.command("clear")
def queue_clear(
    name: str = NAME,
    partition: Optional[str] = PARTITION,
    everything: bool = typer.Option(False, "-a", "--all", help="Of all partitions."),
    yes: bool = YES,
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Remove items."""
    import squall.cli.objects as command

    return command.clear_queue(name, partition=partition, everything=everything, yes=yes, environment=environment)


@queue_group.command("delete")
def queue_delete(
    name: str = NAME, yes: bool = YES, allow_missing: bool = ALLOW_MISSING, environment: Optional[str] = ENVIRONMENT
) -> int:
    """Remove a queue with all that is in it."""
    import squall.cli.objects as command

    return command.delete("queue", name, yes=yes, allow_missing=allow_missing, environment=environment)


# ---------------------------------------------------------------- volumes


@volume_group.command("create")
def volume_create(
    name: str = NAME,
    version: Optional[int] = typer.Option(
        None, "--version", min=1, max=2, help="Of the file system elsewhere; both are the same here."
    ),
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Make an empty volume."""
    import squall.cli.objects as command

    return command.create("volume", name, environment=environment)


@volume_group.command("list")
def volume_list(environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON) -> int:
    """List volumes."""
    import squall.cli.objects as command

    return command.list_objects("volume", environment=environment, as_json=as_json)


@volume_group.command("ls")
def volume_ls(
    name: str = NAME, path: str = REMOTE, environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON
) -> int:
    """List what is in a folder of a volume."""
    import squall.cli.volumes as command

    return command.ls(name, path, environment=environment, as_json=as_json)


@volume_group.command("put")
def volume_put(
    name: str = NAME,
    local: str = typer.Argument(..., metavar="LOCAL", help="File or folder of this machine."),
    path: str = typer.Argument(
        "/", metavar="PATH", help="In the volume; with a slash at its end: the folder to put it into."
    ),
    force: bool = typer.Option(False, "-f", "--force", help="Replace files that are there."),
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Upload a file or a folder, as one new version."""
    import squall.cli.volumes as command

    return command.put(name, local, path, force=force, environment=environment)


@volume_group.command("get")
def volume_get(
    name: str = NAME,
    path: str = typer.Argument(..., metavar="PATH", help="File or folder of the volume."),
    local: str = typer.Argument(".", metavar="LOCAL", help="Where it goes; - is standard output."),
    force: bool = typer.Option(False, "--force", help="Replace local files that are there."),
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Download a file or a folder."""
    import squall.cli.volumes as command

    return command.get(name, path, local, force=force, environment=environment)


@volume_group.command("cp")
def volume_cp(
    name: str = NAME,
    paths: list[str] = typer.Argument(..., metavar="SOURCE... TARGET", help="Paths in the volume."),
    recursive: bool = RECURSIVE,
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Copy files inside a volume."""
    import squall.cli.volumes as command

    return command.cp(name, paths, recursive=recursive, environment=environment)


@volume_group.command("rm")
def volume_rm(
    name: str = NAME,
    path: str = typer.Argument(..., metavar="PATH", help="Path in the volume."),
    recursive: bool = RECURSIVE,
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Remove a file, or a folder."""
    import squall.cli.volumes as command

    return command.rm(name, path, recursive=recursive, environment=environment)


@volume_group.command("gc")
def volume_gc(dry_run: bool = DRY_RUN, as_json: bool = JSON) -> int:
    """Free the space of files that no volume of the workspace needs any more: removed, replaced, or of volumes that
    were deleted. The server does it by itself every few hours."""
    import squall.cli.volumes as command

    return command.gc(dry_run=dry_run, as_json=as_json)


@volume_group.command("rename")
def volume_rename(
    name: str = NAME,
    new_name: str = typer.Argument(..., metavar="NEW", help="The new name."),
    yes: bool = YES,
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Give a volume another name. On a terminal it asks first: programs find it by its name."""
    import squall.cli.volumes as command

    return command.rename(name, new_name, yes=yes, environment=environment)


@volume_group.command("delete")
def volume_delete(
    name: str = NAME, yes: bool = YES, allow_missing: bool = ALLOW_MISSING, environment: Optional[str] = ENVIRONMENT
) -> int:
    """Remove a volume with all that is in it."""
    import squall.cli.objects as command

    return command.delete("volume", name, yes=yes, allow_missing=allow_missing, environment=environment)
