"""What handles return, for annotations of programs that import it from here."""

from squall.autoscaler import AutoscalerSettings as FunctionAutoscalerSettings
from squall.autoscaler import FunctionStats
from squall.call_graph import InputInfo, InputStatus
from squall.infos import AppInfo, FunctionInfo
from squall.objects import ObjectInfo
from squall.volume import FileEntry, FileEntryType

FunctionCurrentStats = FunctionStats
DictInfo = QueueInfo = SecretInfo = VolumeInfo = ObjectInfo

__all__ = [
    "AppInfo",
    "DictInfo",
    "FileEntry",
    "FileEntryType",
    "FunctionAutoscalerSettings",
    "FunctionCurrentStats",
    "FunctionInfo",
    "FunctionStats",
    "InputInfo",
    "InputStatus",
    "QueueInfo",
    "SecretInfo",
    "VolumeInfo",
]
