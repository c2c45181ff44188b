"""Every command with its arguments and help. What a command does is in a module of its own, imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import typer

from squall.cli import absent, environment_commands, fleet_commands, image_commands, storage_commands, webhook_commands
from squall.cli.fleet_commands import CONTEXT, ENVIRONMENT, JSON
from squall.errors import UsageError

app = typer.Typer(
    name="squall",
    help="Serverless Python functions on machines you own.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    rich_markup_mode="rich",
)
app_group = typer.Typer(
    help="Apps: what is running and what is deployed.", no_args_is_help=True, context_settings=CONTEXT
)
call_group = typer.Typer(help="Calls: look at them, cancel them.", no_args_is_help=True, context_settings=CONTEXT)
app.add_typer(app_group, name="app")
app.add_typer(call_group, name="call")

TIMESTAMPS: Any = typer.Option(False, "--timestamps", help="Print the time before each log line.")
STRATEGY: Any = typer.Option(
    "rolling", "--strategy", metavar="[rolling|recreate]", help="recreate: containers of other versions end at once."
)
MODULE: Any = typer.Option(False, "-m", help="The program is a module (pkg.mod), not a file.")


def dispatch(arguments: list[str]) -> int:
    """Runs one command; its exit status. Raises what went wrong, usage errors as `UsageError`."""
    absent.refuse(arguments)
    try:
        result = app(arguments, standalone_mode=False)
    except Exception as error:
        ours = _as_ours(error)
        if ours is error:
            raise  # with its own cause: what the user's code raised, or what the container said
        raise ours from error
    return result if isinstance(result, int) else 0


def _as_ours(error: Exception) -> BaseException:
    """Usage errors of the library (which has moved its classes between releases) as ours."""
    name = type(error).__name__
    if name == "Abort":
        return KeyboardInterrupt()
    if name == "NoArgsIsHelpError":
        return SystemExit(0)
    describe = getattr(error, "format_message", None)
    if describe is None:
        return error
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "squall"
    return UsageError(describe(), fix=f"`{path} --help` shows what is possible.")


# ---------------------------------------------------------------- programs


@app.command(add_help_option=False, context_settings={"allow_interspersed_args": False})
def run(
    reference: Optional[str] = typer.Argument(
        None, metavar="PROGRAM[::NAME]", help="file.py, file.py::name, file.py::Class.method, or - for standard input."
    ),
    arguments: Optional[list[str]] = typer.Argument(
        None, metavar="[OPTIONS OF THE FUNCTION]", help="--name value for each of its parameters."
    ),
    name: Optional[str] = typer.Option(None, "-n", "--name", help="Name of the app for this run."),
    quiet: bool = typer.Option(False, "-q", "--quiet", help="Print only what the program prints, and errors."),
    detach: bool = typer.Option(False, "-d", "--detach", help="The app goes on when this command ends."),
    write_result: Optional[Path] = typer.Option(
        None, "-w", "--write-result", help="Write the result (str or bytes) to a file."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as a line of JSON; logs go to errors."),
    interactive: bool = typer.Option(
        False, "-i", "--interactive", help="Open a Python prompt with the program's names while the app runs."
    ),
    environment: Optional[str] = ENVIRONMENT,
    module: bool = MODULE,
    timestamps: bool = TIMESTAMPS,
    wants_help: bool = typer.Option(
        False, "-h", "--help", help="Show this; after PROGRAM: the options of its function."
    ),
) -> int:
    """Run a function or a local entrypoint of a program, and stop the app when it is done."""
    import squall.cli.run as command

    if reference is None:
        context = typer.main.get_command(app)
        return _show_help(context, wants_help)
    options = command.RunOptions(
        name=name,
        quiet=quiet,
        detach=detach,
        write_result=write_result,
        as_json=as_json,
        interactive=interactive,
        environment=environment,
        timestamps=timestamps,
    )
    return command.run(reference, list(arguments or []), options, as_module=module, wants_help=wants_help)


def _show_help(group: Any, wanted: bool) -> int:
    import sys

    command = group.commands["run"]
    context = command.make_context("squall run", [], resilient_parsing=True)
    if wanted:
        sys.stdout.write(command.get_help(context) or "")
        return 0
    raise UsageError(
        "the program is missing", fix="Name a file, e.g. `squall run app.py`; `squall run --help` shows more."
    )


@app.command()
def deploy(
    reference: str = typer.Argument(..., metavar="PROGRAM[::APP]", help="file.py, or file.py::variable of the app."),
    name: Optional[str] = typer.Option(None, "-n", "--name", help="Name to deploy under (default: the app's)."),
    tag: str = typer.Option("", "--tag", help="Shown in the app's history: a release's name, a commit."),
    strategy: str = STRATEGY,
    stream_logs: bool = typer.Option(
        False, "--stream-logs", help="Then print what its containers write, until Ctrl-C."
    ),
    environment: Optional[str] = ENVIRONMENT,
    module: bool = MODULE,
    timestamps: bool = TIMESTAMPS,
) -> int:
    """Deploy an app: it stays, and can be called by name from anywhere."""
    import squall.cli.deploy as command

    options = command.DeployOptions(
        name=name, tag=tag, strategy=strategy, environment=environment, as_module=module,
        stream_logs=stream_logs, timestamps=timestamps,
    )  # fmt: skip
    return command.deploy(reference, options)


@app.command()
def serve(
    reference: str = typer.Argument(..., metavar="PROGRAM[::APP]", help="file.py, or file.py::variable of the app."),
    name: Optional[str] = typer.Option(None, "-n", "--name", help="Name of the app while it is served."),
    timeout_s: Optional[float] = typer.Option(
        None, "--timeout", min=1, envvar="SQUALL_SERVE_TIMEOUT", help="End after so many seconds."
    ),
    environment: Optional[str] = ENVIRONMENT,
    module: bool = MODULE,
    timestamps: bool = TIMESTAMPS,
) -> int:
    """Run an app while you edit it: each save is loaded into the running app. Ctrl-C stops it.

    Calls that run end on the code they began with; the app keeps its id, so callers go on. A program that cannot be
    loaded leaves the app as it was.
    """
    import squall.cli.serve as command

    options = command.ServeOptions(
        name=name, environment=environment, as_module=module, timeout_s=timeout_s, timestamps=timestamps
    )
    return command.serve(reference, options)


# ---------------------------------------------------------------- the platform of this machine


@app.command()
def up(
    processes: bool = typer.Option(False, "--processes", help="Run each service as its own process."),
    agents: int = typer.Option(1, "--agents", min=1, help="Number of agents; above 1 needs --processes."),
    gateways: int = typer.Option(1, "--gateways", min=1, help="Number of gateways; above 1 needs --processes."),
    host: str = typer.Option("127.0.0.1", "--host", help="Address of the gateway; 0.0.0.0 lets other machines in."),
    port: int = typer.Option(0, "--port", min=0, max=65535, help="Port of the gateway (default: a free one)."),
    data: Optional[Path] = typer.Option(
        None, "--data", help="Folder of everything that it keeps (default: ~/.squall/local)."
    ),
    simulate_gpus: str = typer.Option(
        "",
        "--simulate-gpus",
        metavar="TYPE:N,..",
        help="GPUs that each agent offers without having them, to try things.",
    ),
    backend: str = typer.Option(
        "",
        "--backend",
        help="How containers are made: process, sandbox (needs root), gvisor, docker, auto (sandbox if possible), "
        "both (process; sandbox for what needs it, if possible). Default: SQUALL_GPU_AGENT_BACKEND, else both.",
    ),
) -> int:
    """Start a squall that stays on this machine; later commands use it."""
    import squall.cli.machine as command

    arguments = command.platform_arguments(
        processes=processes,
        agents=agents,
        gateways=gateways,
        host=host,
        port=port,
        simulate_gpus=simulate_gpus,
        backend=backend,
    )
    return command.up(arguments=arguments, port=port, data=data)


@app.command()
def down() -> int:
    """Stop the squall of this machine; what it stored stays."""
    import squall.cli.machine as command

    return command.down()


@app.command()
def status(as_json: bool = JSON) -> int:
    """Show which server commands talk to, and how it is."""
    import squall.cli.machine as command

    return command.status(as_json=as_json)


@app.command()
def doctor(as_json: bool = JSON) -> int:
    """Check this machine: interpreters, tools, disk, server, and what is missing for what."""
    import squall.cli.doctor as command

    return command.doctor(as_json=as_json)


@app.command(
    add_help_option=False,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True, "allow_extra_args": True},
)
def verify(context: typer.Context) -> None:
    """Check on this machine what squall promises: a real platform, seeded faults, and an invariant report."""
    import squall.cli.verify as command

    command.verify(context.args)


@app.command()
def version() -> int:
    """Print the version."""
    import sys

    from squall import __version__

    sys.stdout.write(f"squall {__version__}\n")
    return 0


# ---------------------------------------------------------------- apps and logs

LOG_FOLLOW: Any = typer.Option(False, "-f", "--follow", help="Go on as new lines come, until the app has ended.")
LOG_TAIL: Any = typer.Option(100, "-n", "--tail", min=0, help="How many of the last lines to begin with.")
LOG_FUNCTION: Any = typer.Option(None, "--function", help="Only of this function.")
LOG_CALL: Any = typer.Option(None, "--call", "--function-call", help="Only of this call.")
LOG_CONTAINER: Any = typer.Option(None, "--container", help="Only of this container.")
LOG_STREAM: Any = typer.Option(None, "-s", "--stream", "--source", help="Only stdout, stderr or system.")
LOG_SINCE: Any = typer.Option(None, "--since", help="Only lines after that: 30s, 10m, 2h or 1d ago, or a time.")
LOG_UNTIL: Any = typer.Option(None, "--until", help="Only lines before that, e.g. 5m or 2026-05-31T14:00.")
LOG_SEARCH: Any = typer.Option(None, "--search", help="Only lines with this text, whatever its case.")
YES: Any = typer.Option(False, "-y", "--yes", help="Do not ask.")
APP: Any = typer.Argument(..., metavar="APP", help="Name or id of the app; or the id of a call.")


@app_group.command("list")
def app_list(environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON) -> int:
    """List apps."""
    import squall.cli.apps as command

    return command.list_apps(environment=environment, as_json=as_json)


@app_group.command("stop")
def app_stop(name: str = APP, yes: bool = YES, environment: Optional[str] = ENVIRONMENT) -> int:
    """Stop an app: its calls are cancelled, its containers end. On a terminal it asks first."""
    import squall.cli.apps as command

    return command.stop(name, yes=yes, environment=environment)


@app_group.command("history")
def app_history(name: str = APP, environment: Optional[str] = ENVIRONMENT, as_json: bool = JSON) -> int:
    """Show the versions of a deployed app, newest first."""
    import squall.cli.versions as command

    return command.history(name, environment=environment, as_json=as_json)


@app_group.command("rollback")
def app_rollback(
    name: str = APP,
    version: Optional[str] = typer.Argument(
        None, metavar="[VERSION]", help="As `squall app history` shows it, e.g. v3 (default: the one before)."
    ),
    strategy: str = STRATEGY,
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """Go back to an earlier version at once: new calls use it, calls that were accepted end where they began."""
    import squall.cli.versions as command

    return command.rollback(name, version, strategy=strategy, environment=environment, as_json=as_json)


@app_group.command("logs")
@app.command("logs")
def logs(
    name: str = APP,
    follow: bool = LOG_FOLLOW,
    tail: int = LOG_TAIL,
    function: Optional[str] = LOG_FUNCTION,
    call: Optional[str] = LOG_CALL,
    container: Optional[str] = LOG_CONTAINER,
    stream: Optional[str] = LOG_STREAM,
    since: Optional[str] = LOG_SINCE,
    until: Optional[str] = LOG_UNTIL,
    search: Optional[str] = LOG_SEARCH,
    timestamps: bool = TIMESTAMPS,
    function_id: bool = typer.Option(False, "--show-function-id", help="Print the function before each line."),
    call_id: bool = typer.Option(False, "--show-function-call-id", help="Print the call before each line."),
    container_id: bool = typer.Option(False, "--show-container-id", help="Print the container before each line."),
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """Print what an app's containers wrote."""
    import squall.cli.logs as command
    from squall.logs import Wanted

    begin, end = command.moment(since, "--since"), command.moment(until, "--until")
    wanted = Wanted(function, call, container, stream, begin, end, search, tail)
    before = command.Before(timestamps, function_id, call_id, container_id)
    return command.logs(name, wanted, follow=follow, before=before, environment=environment, as_json=as_json)


# ---------------------------------------------------------------- calls

CALL: Any = typer.Argument(..., metavar="CALL", help="Id of the call (fc-...).")


SINCE: Any = typer.Option(None, "--since", help="Only what failed in the last 30s, 10m, 2h or 1d.")


def _age_s(since: Optional[str]) -> Optional[float]:
    import squall.cli.logs as logs

    return None if since is None else logs.seconds(since)


@call_group.command("list")
def call_list(
    name: Optional[str] = typer.Option(None, "--app", help="Only of this app (name or id)."),
    failed: bool = typer.Option(False, "--failed", help="Only spawned calls that failed, timed out or expired."),
    since: Optional[str] = SINCE,
    limit: int = typer.Option(50, "--limit", min=1, max=1000, help="How many at most."),
    environment: Optional[str] = ENVIRONMENT,
    as_json: bool = JSON,
) -> int:
    """List calls, newest first."""
    import squall.cli.calls as command
    import squall.cli.letters as letters

    age_s = _age_s(since)
    if failed:
        return letters.list_failed(app=name, environment=environment, since_s=age_s, limit=limit, as_json=as_json)
    if age_s is not None:
        raise UsageError("--since is for --failed", fix="Add --failed, or use --limit.")
    return command.list_calls(app=name, environment=environment, limit=limit, as_json=as_json)


@call_group.command("get")
def call_get(call: str = CALL, as_json: bool = JSON) -> int:
    """Show the state of a call."""
    import squall.cli.calls as command

    return command.get(call, as_json=as_json)


@call_group.command("redrive")
def call_redrive(
    call: Optional[str] = typer.Argument(None, metavar="[CALL]", help="A call of `squall call list --failed`."),
    every: bool = typer.Option(False, "--all", help="Every failed call that was not redriven yet."),
    name: Optional[str] = typer.Option(None, "--app", help="With --all: only of this app (name or id)."),
    since: Optional[str] = SINCE,
    environment: Optional[str] = ENVIRONMENT,
) -> int:
    """Run failed spawned calls again: new calls with the same inputs, on the app's present version."""
    import squall.cli.letters as command

    return command.redrive(call, every=every, app=name, environment=environment, since_s=_age_s(since))


@call_group.command("cancel")
def call_cancel(
    call: Optional[str] = typer.Argument(None, metavar="[CALL]", help="Id of the call (fc-...)."),
    every: bool = typer.Option(False, "--all", help="Everything of an app that is queued or runs."),
    name: Optional[str] = typer.Option(None, "--app", help="With --all: of this app (name or id)."),
    function: Optional[str] = typer.Option(None, "--function", help="With --all: only of this function of the app."),
    environment: Optional[str] = ENVIRONMENT,
    terminate: bool = typer.Option(False, "--terminate-containers", help="Also end the containers that run it."),
) -> int:
    """Cancel a call, or all of an app: what waits never starts, what runs is interrupted."""
    import squall.cli.cancel as command

    return command.cancel(
        call,
        every=every,
        app=name,
        function=function,
        environment=environment,
        terminate_containers=terminate,
    )


@app.command()
def trace(call: str = CALL, as_json: bool = JSON) -> int:
    """Show where the time of a call went."""
    import squall.cli.trace as command

    return command.trace(call, as_json=as_json)


fleet_commands.add_to(app)
storage_commands.add_to(app)
webhook_commands.add_to(app)
environment_commands.add_to(app)
image_commands.add_to(app)
