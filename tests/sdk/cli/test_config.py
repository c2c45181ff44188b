"""`squall config`: the settings file, and shell completion; nothing here needs a server."""

from __future__ import annotations

import json
import stat

import pytest
from tests.sdk.cli.shell import Shell

pytestmark = pytest.mark.slow


def test_settings_are_written_shown_and_removed(shell: Shell) -> None:
    shell.squall("config", "set", "server_url", "https://squall.example:8443").ok()
    shell.squall("config", "set", "token", 'se"cret\\token').ok()
    told = json.loads(shell.squall("config", "show", "--json", "--secrets").ok().out)
    found = {row["name"]: row for row in told["settings"]}
    assert found["server_url"]["value"] == "https://squall.example:8443"
    assert found["token"]["value"] == 'se"cret\\token'
    assert found["server_url"]["origin"] == told["file"] == str(shell.home / "config.toml")
    assert found["environment"]["origin"] == "default"
    assert stat.S_IMODE((shell.home / "config.toml").stat().st_mode) == 0o600

    shown = shell.squall("config", "show").ok().out
    assert "cret\\token" not in shown
    assert "cret\\token" not in shell.squall("config", "show", "--redact").ok().out
    assert "cret\\token" in shell.squall("config", "show", "--no-redact").ok().out

    shell.squall("config", "unset", "token").ok()
    assert (shell.home / "config.toml").read_text() == 'server_url = "https://squall.example:8443"\n'


def test_the_environment_wins_and_is_named(shell: Shell) -> None:
    ended = shell.squall("config", "set", "environment", "staging", SQUALL_ENVIRONMENT="prod").ok()
    assert "SQUALL_ENVIRONMENT is set in the environment, which wins" in ended.out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("set", "colour", "red"), "usage", "no setting 'colour'"),
        (("set", "server_url", "localhost"), "usage", "not a server URL"),
        (("set", "async_warnings", "maybe"), "usage", "not 0 or 1"),
        (("set", "token", "two\nlines"), "usage", "one line"),
        (("unset", "token"), "not_found", "token is not set"),
    ],
)
def test_what_cannot_be_a_setting_is_refused(shell: Shell, words: tuple[str, ...], code: str, told: str) -> None:
    shell.squall("config", *words).refused(code, told, status=2 if code == "usage" else 1)
    assert not (shell.home / "config.toml").exists()


def test_profiles_hold_several_servers_and_share_nothing(shell: Shell) -> None:
    def now(**more: str) -> dict[str, str]:
        told = json.loads(shell.squall("config", "show", "--json", "--secrets", **more).ok().out)
        return {row["name"]: row["value"] for row in told["settings"]}

    shell.squall("config", "set", "server_url", "https://home.example").ok()
    shell.squall("config", "set", "token", "home-token").ok()
    shell.squall("config", "set", "--profile", "work", "server_url", "https://work.example").ok()
    assert now()["server_url"] == "https://home.example"
    assert (now(SQUALL_PROFILE="work")["server_url"], now(SQUALL_PROFILE="work")["token"]) == (
        "https://work.example",
        "",
    ), "the token of one server went to another"

    shell.squall("profile", "activate", "work").ok()
    assert shell.squall("profile", "current").ok().out == "work\n"
    shell.squall("config", "set", "token", "work-token").ok()
    assert (now()["server_url"], now()["token"]) == ("https://work.example", "work-token")
    rows = json.loads(shell.squall("profile", "list", "--json").ok().out)
    assert {row["profile"]: row["active"] for row in rows} == {"(none)": False, "work": True}

    shell.squall("profile", "activate").ok()
    assert now()["token"] == "home-token"


def test_a_profile_that_is_not_there_is_refused_with_those_that_are(shell: Shell) -> None:
    shell.squall("config", "set", "--profile", "work", "token", "t").ok()
    shell.squall("profile", "activate", "wrok").refused("not_found", "no profile 'wrok'", "work")
    shell.squall("config", "show", SQUALL_PROFILE="wrok").refused("invalid", "no profile 'wrok'", "work")
    shell.squall("config", "set", "--profile", "a b", "token", "t").refused("invalid", "profile name")


@pytest.mark.parametrize(
    ("typed", "offered"), [("squall ser", ["serve"]), ("squall app h", ["history"]), ("squall node d", ["drain"])]
)
def test_the_shell_completes_commands(shell: Shell, typed: str, offered: list[str]) -> None:
    more = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    assert shell.squall(_SQUALL_COMPLETE="complete_bash", **more).ok().out.split() == offered
