"""Settings come from the environment, are checked at once, and document themselves."""

from __future__ import annotations

from typing import Literal

import pytest

from squall_bus import BusSettings
from squall_service.settings import BusConnection, ServiceSettings, SettingDoc, SettingsError, settings_config


class ExampleSettings(ServiceSettings):
    model_config = settings_config("EXAMPLE")

    port: int = 8700
    """Port of the API."""
    mode: Literal["fast", "safe"] = "safe"
    hosts: tuple[str, ...] = ()
    token: str | None = None


class RequiredSettings(ServiceSettings):
    model_config = settings_config("REQUIRED")

    name: str


def test_defaults_hold_when_nothing_is_set() -> None:
    assert ExampleSettings.load() == ExampleSettings(port=8700, mode="safe", hosts=(), token=None)


def test_the_environment_is_read_and_given_values_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_EXAMPLE_PORT", "99")
    monkeypatch.setenv("SQUALL_EXAMPLE_HOSTS", '["a", "b"]')
    monkeypatch.setenv("SQUALL_OTHER_THING", "of another service")

    assert ExampleSettings.load().port == 99
    assert ExampleSettings.load().hosts == ("a", "b")
    assert ExampleSettings.load(port=1).port == 1


def test_an_empty_variable_is_as_if_it_were_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_EXAMPLE_PORT", "")
    assert ExampleSettings.load().port == 8700


def test_an_unknown_name_stops_the_start_and_the_likely_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_EXAMPLE_PROT", "99")
    with pytest.raises(SettingsError, match=r"SQUALL_EXAMPLE_PROT.*SQUALL_EXAMPLE_PORT"):
        ExampleSettings.load()


def test_a_bad_value_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_EXAMPLE_PORT", "many")
    with pytest.raises(SettingsError, match=r"SQUALL_EXAMPLE_PORT = 'many'"):
        ExampleSettings.load()


def test_a_missing_value_is_named() -> None:
    with pytest.raises(SettingsError, match="SQUALL_REQUIRED_NAME"):
        RequiredSettings.load()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ExampleSettings.load().port = 1


def test_settings_describe_themselves() -> None:
    rows = {row.name: row for row in ExampleSettings.describe()}

    assert rows["SQUALL_EXAMPLE_PORT"] == SettingDoc("SQUALL_EXAMPLE_PORT", "int", "8700", "Port of the API.")
    assert rows["SQUALL_EXAMPLE_TOKEN"].default == ""
    assert rows["SQUALL_EXAMPLE_TOKEN"].type == "str | None"
    assert RequiredSettings.describe()[0].default == "(required)"


def test_each_role_has_its_own_inbox() -> None:
    settings = BusConnection.load(url="nats://bus:4222", region="eu").bus_settings("gateway")

    assert isinstance(settings, BusSettings)
    assert (settings.url, settings.region) == ("nats://bus:4222", "eu")
    assert (settings.name, settings.inbox_prefix) == ("squall-gateway", "_INBOX_gateway")
