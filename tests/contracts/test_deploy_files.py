"""compose.yaml and deploy/ fit the code: settings exist, users are those of the bus, only the proxy is reachable."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.support.deployment import ROOT, Site, neutral

from squall_autoscaler.settings import AutoscalerSettings
from squall_builder.settings import BuilderSettings
from squall_contracts import roles
from squall_gateway.settings import GatewaySettings
from squall_gpu_agent.settings import AgentSettings
from squall_scheduler.settings import SchedulerSettings
from squall_service.sealing import Sealer
from squall_service.settings import BusConnection, ServiceSettings
from squall_service.telemetry import TelemetrySettings

SERVICES: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "scheduler": SchedulerSettings,
    "autoscaler": AutoscalerSettings,
    "builder": BuilderSettings,
    "agent": AgentSettings,
}
COMMON: tuple[type[ServiceSettings], ...] = (BusConnection, TelemetrySettings)
UNITS = ROOT / "deploy" / "systemd"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    ready = Site(tmp_path_factory.mktemp("site"))
    ready.setup()
    return ready


@pytest.fixture(scope="module")
def config(site: Site) -> dict[str, Any]:
    return site.config("observe")


def unknown(names: set[str], settings: type[ServiceSettings]) -> set[str]:
    known = {name for each in (settings, *COMMON) for name in each.names()}
    return {name for name in names if name.startswith("SQUALL_")} - known


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_of_a_service_exists(service: str, config: dict[str, Any]) -> None:
    given = config["services"][service]["environment"]

    assert unknown(set(given), SERVICES[service]) == set()
    role, node = (roles.AGENT, given["SQUALL_GPU_AGENT_NODE"]) if service == "agent" else (service, "")
    assert given["SQUALL_BUS_USER"] == roles.user_name(role, node)


def test_passwords_and_tokens_are_those_of_the_setup(site: Site, config: dict[str, Any]) -> None:
    secrets = site.secrets()
    services = config["services"]

    for service in (*SERVICES, "topology"):
        given = services[service]["environment"]
        variable = "SQUALL_BUS_PASSWORD_" + given["SQUALL_BUS_USER"].upper().replace("-", "_")
        assert given["SQUALL_BUS_PASSWORD"] == secrets[variable]
        # Nobody else's are in its environment.
        others = {value for name, value in secrets.items() if name.startswith("SQUALL_BUS_") and name != variable}
        assert not others & set(given.values())
    assert services["agent"]["environment"]["SQUALL_GPU_AGENT_TOKEN"] == secrets["SQUALL_SERVICE_TOKEN"]
    having_the_key = {name for name, each in services.items() if secrets["SQUALL_SECRETS_KEY"] in str(each)}
    assert having_the_key == {"gateway", "agent", "builder"}, "the bus must not have the key"
    assert secrets["SQUALL_BUS_PASSWORD_GATEWAY"] in services["nats"]["environment"].values()
    assert Sealer(secrets["SQUALL_SECRETS_KEY"]).fingerprint(b"usable")


def test_only_the_proxy_publishes_a_port_and_only_to_this_machine(config: dict[str, Any]) -> None:
    published = {
        name: service["ports"]
        for name, service in config["services"].items()
        if service.get("ports") and not {"observe", "registry"} & set(service.get("profiles", ()))
    }

    assert list(published) == ["proxy"]
    every = [port for service in config["services"].values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in every} == {"127.0.0.1"}


def test_every_target_is_in_the_dockerfile(config: dict[str, Any]) -> None:
    stages = set(re.findall(r"^FROM .* AS (\S+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE))
    targets = {service["build"]["target"] for service in config["services"].values() if "build" in service}

    assert targets == {"gateway", "scheduler", "autoscaler", "builder", "gpu-agent", "bus-tools"}
    assert targets <= stages


def test_commands_and_extras_of_the_dockerfile_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "deploy" / "Dockerfile").read_text()

    assert set(re.findall(r'^CMD \["([a-z-]+)"', text, re.MULTILINE)) <= set(project["scripts"])
    assert set(re.findall(r'"squall-platform\[([a-z-]+)\]"', text)) <= set(project["optional-dependencies"])


def test_setup_keeps_what_it_made_and_adds_nodes(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.setup("node-1")
    first = site.secrets()
    site.setup("node-1", "gpu-2")
    second = site.secrets()

    assert first.items() <= second.items()
    assert set(second) - set(first) == {"SQUALL_BUS_PASSWORD_AGENT_GPU_2"}
    assert stat.S_IMODE((site.folder / ".env").stat().st_mode) == 0o600
    users = (site.folder / "deploy" / "site" / "users.conf").read_text()
    assert "agent-gpu-2" in users
    assert not any(secret in users for secret in second.values())


@pytest.mark.parametrize("name", ["agent", "builder"])
def test_units_start_what_is_there_with_settings_that_exist(name: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    unit = (UNITS / ("squall-gpu-agent.service" if name == "agent" else "squall-builder.service")).read_text()
    example = (UNITS / f"{name}.env.example").read_text()

    [program] = re.findall(r"^ExecStart=/opt/squall/venv/bin/(\S+)$", unit, re.MULTILINE)
    assert program in scripts
    assert f"EnvironmentFile=/etc/squall/{name}.env" in unit
    names = set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    assert names
    assert unknown(names, SERVICES[name]) == set()


def test_the_proxy_accepts_its_configuration() -> None:
    caddy = Path(sys.executable).with_name("caddy")
    checked = subprocess.run(
        [caddy, "validate", "--adapter", "caddyfile", "--config", ROOT / "deploy" / "caddy" / "Caddyfile"],
        env=neutral(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here: apt install prometheus")
@pytest.mark.parametrize(
    "arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")], ids=["config", "rules"]
)
def test_prometheus_accepts_its_configuration_and_the_rules_fire(arguments: tuple[str, ...]) -> None:
    checked = subprocess.run(
        ["promtool", *arguments],
        cwd=ROOT / "deploy" / "prometheus",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
