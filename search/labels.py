"""Labels of a cluster's nodes, and which of them a trial asks for: the words of Ray's label selectors.

A node is given labels when it starts (``ray start --labels zone=b,disk=nvme``); a trial asks for ``{zone: b}``. A value
may also be ``!b`` (any other one, or none), ``in(a, b)`` (one of these) or ``!in(a, b)`` (none of these).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:(?=.{{1,253}}/){_NAME}(?:\.{_NAME})*/)?{_NAME}")
_VALUE = re.compile(rf"(!?)(?:in\(({_NAME}(?:, ?{_NAME})*)\)|({_NAME}))")


def problem(wanted: Mapping[str, str]) -> str | None:
    """Why Ray would not understand what is asked for; None where it does."""
    for key, value in wanted.items():
        if not _KEY.fullmatch(key):
            return (
                f"a label is letters, digits, '.', '_' and '-', with a prefix and '/' before it or not, but got {key!r}"
            )
        if not _VALUE.fullmatch(value):
            return f"{key}: must be a value, !value, in(value, value) or !in(value, value), but got {value!r}"
    return None


def match(wanted: Mapping[str, str], there: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one that is asked for."""
    return all(_matches(value, there.get(key)) for key, value in wanted.items())


def _matches(value: str, there: str | None) -> bool:
    found = _VALUE.fullmatch(value)
    assert found is not None, "as `problem` makes sure"
    other, several, one = found.groups()
    among = there in (re.split(", ?", several) if several else [one])
    return among != bool(other)
