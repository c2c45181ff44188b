"""What handles return, for annotations of programs that import it from here."""

from squall.autoscaler import AutoscalerSettings as FunctionAutoscalerSettings
from squall.autoscaler import FunctionStats
from squall.call_graph import InputInfo, InputStatus
from squall.http_api.traces import LogEntry
from squall.infos import AppInfo, FunctionInfo
from squall.objects import ObjectInfo
from squall.unimplemented import absent_module
from squall.volume import FileEntry, FileEntryType

FileType = FileEntryType
FunctionCurrentStats = FunctionStats
DictInfo = QueueInfo = SecretInfo = VolumeInfo = ObjectInfo

__all__ = [
    "AppInfo",
    "DictInfo",
    "FileEntry",
    "FileEntryType",
    "FileType",
    "FunctionAutoscalerSettings",
    "FunctionCurrentStats",
    "FunctionInfo",
    "FunctionStats",
    "InputInfo",
    "InputStatus",
    "LogEntry",
    "QueueInfo",
    "SecretInfo",
    "VolumeInfo",
]

__getattr__ = absent_module("squall.types", {}, "Nothing that squall has gives one: leave the annotation out.")
