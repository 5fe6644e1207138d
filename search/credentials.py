"""Ray's token: who has it runs code on the cluster, so every Ray that we start asks for one of its own.

Ray looks for the token of a cluster in $RAY_AUTH_TOKEN, in the file that $RAY_AUTH_TOKEN_PATH names and in
~/.ray/auth_token, in this order, and it presents one only where $RAY_AUTH_MODE is token.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PLACES = "$RAY_AUTH_TOKEN, the file that $RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
"""Where a token may be, for messages."""


def found() -> bool:
    """Whether Ray will find a token here."""
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return True
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() != ""
    except (OSError, UnicodeDecodeError):
        return False


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """A token for a Ray that starts in this context, which nobody knows but this process and those it starts.

    It lies in the environment, which other users can't read; Ray itself would take ~/.ray/auth_token, which it makes
    readable for everybody and shares among all that it starts.
    """
    with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        yield


@contextlib.contextmanager
def presented(asked: bool) -> Iterator[None]:
    """Present the token that is here to a Ray that others started, where it asks for one; else nobody is to see it."""
    with _environment({"RAY_AUTH_MODE": "token" if asked else "disabled"}):
        yield


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    reread()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def reread() -> None:
    """Make Ray look at the environment again: it does so once in a process, and maybe for an earlier cluster."""
    if "ray" in sys.modules:
        from ray import _raylet

        internals: Any = _raylet
        internals.Config.initialize("")
        internals.AuthenticationTokenLoader.instance().reset_cache()
