"""What one of the doctor's checks found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        name: of what was looked at.
        status: error is what a search would fail by, warning what makes it slow or surprising.
        said: what is there.
        mend: what to do about it; "" where all is well.
    """

    name: str
    status: Status
    said: str
    mend: str = ""


def refused(name: str, message: str, status: Status = "error") -> Finding:
    """The finding of one of our errors: what is wrong stands before its first semicolon, the ways out behind it."""
    said, _, mend = message.partition("; ")
    return Finding(name=name, status=status, said=said, mend=mend.removeprefix("expected "))
