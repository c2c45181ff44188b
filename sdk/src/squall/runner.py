"""`runner.deploy_app`, for programs that call it: `App.deploy` under an old name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from squall.old_names import warn_renamed

if TYPE_CHECKING:
    from squall.app import App


class DeployResult(NamedTuple):
    """What was deployed."""

    app_id: str
    app_page_url: str
    app_logs_url: str
    warnings: list[str]


def deploy_app(
    app: App,
    name: Optional[str] = None,
    environment_name: Optional[str] = None,
    client: None = None,
    tag: str = "",
    **others: Any,
) -> DeployResult:
    """The old name of `app.deploy(...)`: it works, and says what it is called now."""
    warn_renamed("`runner.deploy_app(app)` is called `app.deploy()` now")
    deployed = app.deploy(name=name, environment_name=environment_name, client=client, tag=tag, **others)
    assert deployed.app_id is not None
    page = deployed.get_dashboard_url()
    return DeployResult(deployed.app_id, page, page, [])
