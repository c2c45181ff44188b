"""The commands about machines, containers, functions, tokens and settings, with their arguments and help."""

from __future__ import annotations

from typing import Any, Optional

import typer

CONTEXT = {"help_option_names": ["-h", "--help"]}
ENVIRONMENT: Any = typer.Option(None, "-e", "--env", help="Environment (default: the configured one, or main).")
YES: Any = typer.Option(False, "-y", "--yes", help="Do not ask.")
JSON: Any = typer.Option(False, "--json", help="Print JSON.")
APP_OPTION: Any = typer.Option(None, "--app", "--app-id", help="Only of this app (name or id).")
NODE: Any = typer.Argument(..., metavar="NODE", help="Name of the machine, as `squall node list` shows it.")
CONTAINER: Any = typer.Argument(
    ..., metavar="CONTAINER", help="Id of the container, as `squall container list` shows it."
)
APP: Any = typer.Argument(..., metavar="APP", help="Name or id of the app.")


def _group(help_text: str) -> typer.Typer:
    return typer.Typer(help=help_text, no_args_is_help=True, context_settings=CONTEXT)


container_group = _group("Containers: what runs where, end one, look into one.")
node_group = _group("Machines: what they have, and taking one out of service.")
function_group = _group("Functions: what they declare, what their containers do.")
token_group = _group("Tokens: who may use this server.")
proxy_group = _group("Tokens of clients of web functions with requires_proxy_auth.")
config_group = _group("Settings of this user: which server, token and environment commands use.")
profile_group = _group("Profiles: several servers or tokens by name, in the settings of this user.")


def add_to(app: typer.Typer) -> None:
    """Make them commands of `squall`."""
    app.add_typer(container_group, name="container")
    app.add_typer(node_group, name="node")
    app.add_typer(function_group, name="function")
    token_group.add_typer(proxy_group, name="proxy")
    app.add_typer(token_group, name="token")
    app.add_typer(config_group, name="config")
    app.add_typer(profile_group, name="profile")


# ---------------------------------------------------------------- containers


@container_group.command("list")
def container_list(
    name: Optional[str] = APP_OPTION, environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON
) -> int:
    """List containers."""
    import squall.cli.inventory as command

    return command.containers(app=name, environment=environment, as_json=as_json)


@container_group.command("stop")
def container_stop(
    container: str = CONTAINER,
    graceful: bool = typer.Option(False, "--graceful", help="Let the inputs that run in it end first."),
    yes: bool = YES,
    as_json: bool = JSON,
) -> int:
    """End a container: its inputs are interrupted and start again elsewhere, unless --graceful. A terminal is asked."""
    import squall.cli.fleet as command

    return command.stop(container, graceful=graceful, yes=yes, as_json=as_json)


@container_group.command("exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def container_exec(
    container: str = CONTAINER,
    command_line: Optional[list[str]] = typer.Argument(None, metavar="COMMAND", help="The program and its arguments."),
    timeout_s: float = typer.Option(60.0, "--timeout", min=1, max=3600, help="Seconds after which it is killed."),
    terminal: bool = typer.Option(False, "--pty/--no-pty", help="A terminal, which it cannot have: pty is refused."),
) -> int:
    """Run a command with the variables, packages and folder of a container: no input, no terminal.

    Its output and exit status are those of this command. It runs beside the container's own process and sees the same
    files; where a node's backend cannot do that, the error says so.
    """
    import squall.cli.fleet as command

    return command.execute(container, list(command_line or []), timeout_s=timeout_s, terminal=terminal)


# ---------------------------------------------------------------- machines


@node_group.command("list")
def node_list(as_json: bool = JSON) -> int:
    """List machines: what they have, and what of it is used."""
    import squall.cli.inventory as command

    return command.nodes(as_json=as_json)


@node_group.command("drain")
def node_drain(
    node: str = NODE,
    wait_s: Optional[float] = typer.Option(
        None, "--wait", min=0, help="Wait so many seconds until it has no containers; fail if it still has."
    ),
    as_json: bool = JSON,
) -> int:
    """Take a machine out of service: no new containers, and those that it has end once their inputs have.

    Lasts until `squall node resume`, or until the agent there is restarted.
    """
    import squall.cli.fleet as command

    return command.drain(node, wait_s=wait_s, as_json=as_json)


@node_group.command("resume")
def node_resume(node: str = NODE, as_json: bool = JSON) -> int:
    """End the drain of a machine: it takes containers again."""
    import squall.cli.fleet as command

    return command.resume(node, as_json=as_json)


# ---------------------------------------------------------------- functions


@function_group.command("info")
def function_info(
    name: str = APP,
    function: str = typer.Argument(..., metavar="FUNCTION", help="Name of the function or class."),
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """Show what a function declares: code, image, resources, scaling, timeouts, retries."""
    import squall.cli.functions as command

    return command.info(name, function, environment=environment, as_json=as_json)


@function_group.command("stats")
def function_stats(
    name: str = APP,
    function: Optional[str] = typer.Argument(None, metavar="[FUNCTION]", help="Only of this function or class."),
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """Show what is queued and running now, how many containers there are, and why."""
    import squall.cli.functions as command

    return command.stats(name, function, environment=environment, as_json=as_json)


# ---------------------------------------------------------------- tokens


@token_group.command("create")
def token_create(
    name: str = typer.Argument(..., metavar="NAME", help="For people: whose or what for."),
    scope: str = typer.Option(
        "workspace", "--scope", help="workspace: everything. caller: call functions over HTTP and read results."
    ),
    role: Optional[str] = typer.Option(
        None, "--role", help="viewer: look. member: and change. admin: and make tokens, drain nodes (the default)."
    ),
    expires: Optional[str] = typer.Option(None, "--expires", help="It ends after 30m, 12h or 90d (default: never)."),
    as_json: bool = JSON,
) -> int:
    """Make a token and print it: for another machine, person or program. It is shown this one time."""
    import squall.cli.tokens as command

    return command.create(name, scope=scope, role=role, expires=expires, as_json=as_json)


@token_group.command("list")
def token_list(as_json: bool = JSON) -> int:
    """List tokens by id; the tokens themselves are stored nowhere."""
    import squall.cli.tokens as command

    return command.list_tokens(as_json=as_json)


@token_group.command("revoke")
def token_revoke(
    token: str = typer.Argument(..., metavar="ID", help="Id of the token (tk-...), as `squall token list` shows it."),
    as_json: bool = JSON,
) -> int:
    """Make a token useless, within five seconds."""
    import squall.cli.tokens as command

    return command.revoke(token, as_json=as_json)


@proxy_group.command("create")
def proxy_create(
    name: str = typer.Argument("proxy", metavar="[NAME]", help="For people: whose or what for."),
    expires: Optional[str] = typer.Option(None, "--expires", help="It ends after 30m, 12h or 90d (default: never)."),
    as_json: bool = JSON,
) -> int:
    """Make a key and a secret for web functions with requires_proxy_auth. They are shown this one time."""
    import squall.cli.tokens as command

    return command.create_proxy(name, expires=expires, as_json=as_json)


# ---------------------------------------------------------------- settings


@config_group.command("show")
def config_show(
    as_json: bool = JSON,
    secrets: bool = typer.Option(False, "--secrets", help="Show the token in full."),
    redact: Optional[bool] = typer.Option(None, "--redact/--no-redact", help="The same, the other way round."),
) -> int:
    """Show each setting, its value, and where that comes from: the environment, the file or the default."""
    import squall.cli.configuring as command

    return command.show(as_json=as_json, secrets=secrets or redact is False)


PROFILE: Any = typer.Option(None, "--profile", help="Of this profile (default: the active one, if any).")
SETTING: Any = typer.Argument(..., metavar="SETTING", help="server_url, token, environment or async_warnings.")


@config_group.command("set")
def config_set(
    name: str = SETTING,
    value: str = typer.Argument(..., metavar="VALUE", help="One line of text."),
    profile: Optional[str] = PROFILE,
) -> int:
    """Write a setting to the file ~/.squall/config.toml, which later commands read."""
    import squall.cli.configuring as command

    return command.write(name, value, profile)


@config_group.command("unset")
def config_unset(name: str = SETTING, profile: Optional[str] = PROFILE) -> int:
    """Remove a setting from the file."""
    import squall.cli.configuring as command

    return command.write(name, None, profile)


@profile_group.command("list")
def profile_list(as_json: bool = JSON) -> int:
    """List the profiles of the file, and say which one commands use."""
    import squall.cli.configuring as command

    return command.profiles(as_json=as_json)


@profile_group.command("current")
def profile_current() -> int:
    """Print the active profile: SQUALL_PROFILE, or the one that was activated."""
    import sys

    from squall import config

    sys.stdout.write(f"{config.load().profile or '(none)'}\n")
    return 0


@profile_group.command("activate")
def profile_activate(
    profile: str = typer.Argument("", metavar="[PROFILE]", help="Its name; leave it out to use no profile."),
) -> int:
    """Make a profile the one that later commands and programs use."""
    import squall.cli.configuring as command

    return command.activate(profile)
