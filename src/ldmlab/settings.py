"""Checks of settings that objects make when they are built; most of those objects are dataclasses."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any


class SettingError(ValueError):
    """A setting has a value that it cannot have: "name: what is needed, not value"."""


def is_number(value: Any) -> bool:
    """Whether a value is a number, which true, false and "not a number" are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


CHECKS = {
    "int": (is_whole, "a whole number"),
    "float": (is_number, "a number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
}


def check_types(settings: Any) -> None:
    """Raises SettingError if a field declared int, float or bool holds something else; `| None` may be None."""
    for field in fields(settings):
        # annotations are strings here, as every module postpones their evaluation
        kind, _, alternative = str(field.type).partition(" | ")
        value = getattr(settings, field.name)
        if kind in CHECKS and not (alternative == "None" and value is None):
            holds, wanted = CHECKS[kind]
            require(holds(value), field.name, wanted, value)


def require_counts(**values: Any) -> None:
    """Raises SettingError for a value that is no whole number above 0."""
    for name, value in values.items():
        require(is_whole(value) and value > 0, name, "a whole number above 0", value)


def require_not_negative(**values: Any) -> None:
    """Raises SettingError for a value that is no number of 0 or more."""
    for name, value in values.items():
        require(is_number(value) and value >= 0, name, "a number of 0 or more", value)


def require(holds: bool, name: str, wanted: str, value: Any) -> None:
    """Raises SettingError unless `holds`: the setting `name` must be `wanted` and is `value`."""
    if not holds:
        raise SettingError(f"{name}: {wanted} is needed, not {value}")
