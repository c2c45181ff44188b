"""Declarations: pools, versions of functions, apps and images, as gateway and builder have stored them. A fold."""

from __future__ import annotations

from squall.spec import FunctionSpec
from squall_contracts.builds import ImageRecord
from squall_contracts.functions import AppRecord, FunctionRecord, PoolRecord
from squall_scheduler.state import PoolId


class Declarations:
    """What was declared."""

    def __init__(self) -> None:
        self._records: dict[PoolId, PoolRecord] = {}
        self._functions: dict[str, FunctionRecord] = {}
        self._image_of: dict[str, str] = {}
        self._apps: dict[str, AppRecord] = {}
        self._stopped_apps: set[str] = set()
        self._images: dict[str, ImageRecord] = {}

    # ------------------------------------------------------------------ views

    def record(self, pool: PoolId) -> PoolRecord | None:
        return self._records.get(pool)

    def function(self, pool: PoolId) -> FunctionRecord | None:
        """The version of the function that a pool runs, with the pool's own scaling."""
        record = self._records.get(pool)
        function = self._functions.get(record.function_id) if record else None
        return record.scaled(function) if record and function else None

    def spec(self, pool: PoolId) -> FunctionSpec | None:
        """What the pool's function declares."""
        function = self.function(pool)
        return function.spec if function else None

    def stopped(self, pool: PoolId) -> bool:
        """Whether the pool's app is stopped."""
        record = self._records.get(pool)
        return record is not None and record.app_id in self._stopped_apps

    def apps(self) -> list[AppRecord]:
        """Every app that is not stopped."""
        return [record for app_id, record in self._apps.items() if app_id not in self._stopped_apps]

    def version(self, function_id: str) -> FunctionRecord | None:
        """A version of a function."""
        return self._functions.get(function_id)

    def image(self, pool: PoolId) -> tuple[str, ImageRecord | None]:
        """Id and build of the pool's image."""
        record = self._records.get(pool)
        image = self._image_of.get(record.function_id, "") if record else ""
        return image, self._images.get(image)

    def pools_of(self, *, app: str = "", function: str = "", image: str = "") -> set[PoolId]:
        """The pools that a fact about an app, a function or an image concerns."""
        found = set()
        for pool, record in self._records.items():
            built_from = self._image_of.get(record.function_id, "")
            if record.app_id == app or record.function_id == function or (image and built_from == image):
                found.add(pool)
        return found

    # ------------------------------------------------------------------ facts

    def pool_declared(self, pool: PoolId, record: PoolRecord | None) -> None:
        """The gateway made a pool, or it was cleaned up."""
        self._records.pop(pool, None)
        if record is not None:
            self._records[pool] = record

    def function_declared(self, function_id: str, record: FunctionRecord | None) -> None:
        """A version of a function exists, or no longer."""
        if record is None:
            self._functions.pop(function_id, None)
            self._image_of.pop(function_id, None)
            return
        self._functions[function_id] = record
        self._image_of[function_id] = record.spec.image.id

    def app_changed(self, app_id: str, record: AppRecord | None) -> None:
        """Whether an app is stopped; one that was removed is."""
        self._apps.pop(app_id, None)
        if record is not None:
            self._apps[app_id] = record
        if record is None or record.state == "stopped":
            self._stopped_apps.add(app_id)
        else:
            self._stopped_apps.discard(app_id)

    def image_changed(self, image: str, record: ImageRecord | None) -> None:
        """State of a build."""
        self._images.pop(image, None)
        if record is not None:
            self._images[image] = record
