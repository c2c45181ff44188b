"""Which app answers to a name: host labels and custom domains of all apps. A view of their records; decides nothing but
who wins when several want one name: the newest app that runs for its client, then the newest deployed one."""

from __future__ import annotations

from squall_contracts.functions import AppRecord


class WebNames:
    """By name, the apps that have it."""

    def __init__(self) -> None:
        self._apps: dict[str, AppRecord] = {}
        self._by_name: dict[str, set[str]] = {}

    def saw(self, record: AppRecord) -> None:
        """An app was made or changed."""
        before = self._apps.get(record.app_id)
        if before is not None and before.web == record.web:
            self._apps[record.app_id] = record
            return
        self.gone(record.app_id)
        if record.web:
            self._apps[record.app_id] = record
            for name in record.web:
                self._by_name.setdefault(name, set()).add(record.app_id)

    def gone(self, app_id: str) -> None:
        """It is there no longer."""
        before = self._apps.pop(app_id, None)
        for name in before.web if before is not None else ():
            owners = self._by_name[name]
            owners.discard(app_id)
            if not owners:
                del self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def find(self, name: str) -> AppRecord | None:
        """The app that has it now."""
        return max(self.live(name), key=lambda record: (record.state != "deployed", record.created_at), default=None)

    def live(self, name: str) -> list[AppRecord]:
        """Apps that have it and are not stopped."""
        records = [self._apps[app_id] for app_id in self._by_name.get(name, ())]
        return [record for record in records if record.state != "stopped"]
