"""All settings of a run in one dataclass: a field is a flag, a key of the YAML file and a keyword in Python.

The settings stand by topic in `data`, `network`, `method`, `teacher`, `optimization`, `machine` and `record`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Generic, get_type_hints

from densecl.choices import Auto
from densecl.config.data import DataSettings
from densecl.config.machine import MachineSettings
from densecl.config.method import MethodSettings
from densecl.config.network import NetworkSettings
from densecl.config.optimization import OptimizationSettings
from densecl.config.record import PresetSettings, RecordSettings
from densecl.config.setting import Meaning, Open, meaning_of
from densecl.config.teacher import TeacherSettings

#: By title, in the order in which help and files show them.
GROUPS: Mapping[str, type] = {
    "the data": DataSettings,
    "the backbone": NetworkSettings,
    "the method": MethodSettings,
    "a teacher, an anchor": TeacherSettings,
    "optimization": OptimizationSettings,
    "the machine": MachineSettings,
    "what is watched and kept": RecordSettings,
    "the defaults": PresetSettings,
}


# Dataclasses collect their fields from the last base to the first.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(
    PresetSettings[Open],
    RecordSettings[Open],
    MachineSettings[Open],
    OptimizationSettings[Open],
    TeacherSettings[Open],
    MethodSettings[Open],
    NetworkSettings[Open],
    DataSettings[Open],
    Generic[Open],
):
    """The settings of a run. What is `Open` may be left to the run."""

    @property
    def sources(self) -> tuple[str, ...]:
        """What `data` names, one or several."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @property
    def processes(self) -> int:
        """Devices on all machines. What is left open counts as one."""
        return math.prod(number for number in (self.devices, self.nodes) if isinstance(number, int))


@functools.cache
def setting_fields() -> Mapping[str, dataclasses.Field[Any]]:
    """The field of each setting, in order."""
    return {field.name: field for field in dataclasses.fields(Settings)}


@functools.cache
def setting_types() -> Mapping[str, Any]:
    """The type of each setting in a recipe."""
    hints = get_type_hints(Settings)
    return {
        name: hints[name][Auto] if getattr(hints[name], "__parameters__", ()) else hints[name]
        for name in setting_fields()
    }


@functools.cache
def meanings() -> Mapping[str, Mapping[str, Meaning]]:
    """What each setting means, by the title of its group."""
    fields = setting_fields()
    return {
        title: {field.name: meaning_of(fields[field.name]) for field in dataclasses.fields(group)}
        for title, group in GROUPS.items()
    }


def defaults() -> Mapping[str, Any]:
    """The default of each setting; `data` has none."""
    return {name: field.default for name, field in setting_fields().items() if field.default is not dataclasses.MISSING}


def field_names() -> tuple[str, ...]:
    """The names of all settings, in order."""
    return tuple(setting_fields())
