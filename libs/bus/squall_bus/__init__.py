"""The typed bus: the only package that speaks to the NATS server. Knows no policy."""

from squall_bus.bus import Bus
from squall_bus.connection import connect
from squall_bus.delivery import Delivery
from squall_bus.errors import (
    BusError,
    BusForbidden,
    BusUnavailable,
    KeyExists,
    NotFound,
    PublishUnknown,
    Refused,
    ServerTooOld,
    StreamFull,
    SubjectTaken,
    TopologyConflict,
    TopologyMissing,
    WrongRevision,
)
from squall_bus.kv import GRAVE_S, KeyValue, KeyWrite
from squall_bus.pulling import Puller
from squall_bus.records import (
    BusStats,
    Change,
    ConsumerInfo,
    ConsumerSpec,
    Entry,
    Message,
    Published,
    Record,
    Sourcing,
    Stored,
    StoreInfo,
    StreamInfo,
)
from squall_bus.settings import BusSettings
from squall_bus.subscribing import Subscription
from squall_bus.watching import Watch

__all__ = [
    "Bus",
    "BusSettings",
    "BusStats",
    "connect",
    "Record",
    "Published",
    "Message",
    "StoreInfo",
    "Stored",
    "Sourcing",
    "StreamInfo",
    "Subscription",
    "Puller",
    "Delivery",
    "ConsumerSpec",
    "ConsumerInfo",
    "KeyValue",
    "KeyWrite",
    "GRAVE_S",
    "Entry",
    "Watch",
    "Change",
    "BusError",
    "BusForbidden",
    "BusUnavailable",
    "KeyExists",
    "NotFound",
    "PublishUnknown",
    "Refused",
    "ServerTooOld",
    "StreamFull",
    "SubjectTaken",
    "TopologyConflict",
    "TopologyMissing",
    "WrongRevision",
]
