"""Who may talk to the dashboard: a WSGI layer in front of it, which knows nothing of studies.

With a password, nothing is answered before it was given once; a signed cookie remembers that for a while. Without
one, only names of this machine are answered to, so that no page on the web can get at the dashboard through a name of
its own (DNS rebinding). Whoever changes something must come from the dashboard's own pages (CSRF).
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import json
import math
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from search.errors import UserError

Environment = dict[str, Any]
Start = Callable[..., Any]
Application = Callable[[Environment, Start], Iterable[bytes]]

VARIABLE = "VQSEARCH_DASHBOARD_PASSWORD"

SESSION_S = 12 * 3600
"""Seconds for which a browser stays logged in."""

TRIES = 5
"""Wrong passwords from one address after which it has to wait."""

LONGEST_WAIT_S = 60.0
LONGEST_FORM = 4096
ADDRESSES = 10_000
"""Addresses whose wrong passwords are remembered."""

HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>vqsearch dashboard</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0; }}
form {{ width: min(20rem, 85vw); display: grid; gap: .75rem; }}
h1 {{ font-size: 1.25rem; margin: 0; }}
input, button {{ font: inherit; padding: .5rem .75rem; box-sizing: border-box; width: 100%; }}
[role=alert] {{ margin: 0; color: light-dark(#a11, #f99); }}
</style>
</head>
<body>
<form method="post" action="/login?next={next}">
<h1>vqsearch dashboard</h1>
{problem}<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button>
</form>
</body>
</html>
"""


class Guard:
    """Lets through who may come in.

    Args:
        inner: what is guarded.
        host: address or name that is listened on.
        password: None for none, which only an address of this machine alone may do.
        now: seconds that only ever rise.
    """

    def __init__(
        self, inner: Application, host: str, password: str | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner = inner
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}
        self._password = password
        self._secret = secrets.token_bytes(32)
        self._cookie = f"vqsearch-{secrets.token_hex(4)}"  # cookies know no port, and there may be two dashboards
        self._now = now
        self._wrong: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def __call__(self, environment: Environment, start: Start) -> Iterable[bytes]:
        """Answer one request."""
        answer = self._refused(environment) or self._asked_for_password(environment)
        if answer is None:
            return self._inner(environment, _with_headers(start))
        status, headers, body = answer
        _with_headers(start)(
            f"{status.value} {status.phrase}",
            [*headers, ("Content-Length", str(len(body))), ("Cache-Control", "no-store")],
        )
        return [] if environment["REQUEST_METHOD"] == "HEAD" else [body]

    def _refused(self, environment: Environment) -> Answer | None:
        host = environment.get("HTTP_HOST", "")
        if self._password is None and _name(host) not in self._names:
            return refusal(HTTPStatus.FORBIDDEN, f"{host!r} is no name of this dashboard; expected localhost")
        if environment["REQUEST_METHOD"] not in ("GET", "HEAD"):
            origin = environment.get("HTTP_ORIGIN", "")
            if not host or urlsplit(origin).netloc.lower() != host.lower():
                return refusal(
                    HTTPStatus.FORBIDDEN, f"changes from {origin or 'nowhere'!r}; expected the dashboard's own pages"
                )
        return None

    def _asked_for_password(self, environment: Environment) -> Answer | None:
        if self._password is None:
            return None
        path, query = environment.get("PATH_INFO", ""), environment.get("QUERY_STRING", "")
        if path == "/login":
            to = _local(parse_qs(query).get("next", ["/"])[0])
            return self._log_in(environment, to) if environment["REQUEST_METHOD"] == "POST" else _form(to)
        if self._knows(environment):
            return None
        if environment["REQUEST_METHOD"] != "GET" or path.startswith(("/api/", "/artifacts/", "/csv/", "/static/")):
            return refusal(HTTPStatus.UNAUTHORIZED, "log in first")
        return _redirect(f"/login?next={quote(path or '/', safe='')}", [])

    def _log_in(self, environment: Environment, to: str) -> Answer:
        assert self._password is not None
        given, address = _field(environment, "password"), environment.get("REMOTE_ADDR", "")
        with self._lock:  # held all along, so that many tries at once are many tries
            count, last = self._wrong.pop(address, (0, -math.inf))
            least = min(2.0 ** (count - TRIES + 1), LONGEST_WAIT_S) if count >= TRIES else 0.0
            wait = last + least - self._now()
            right = wait <= 0 and hmac.compare_digest(_digest(given), _digest(self._password))
            if not right:
                self._wrong[address] = (count, last) if wait > 0 else (count + 1, self._now())
            while len(self._wrong) > ADDRESSES:
                del self._wrong[next(iter(self._wrong))]
        if wait > 0:
            _, headers, body = _form(to, f"Too many wrong passwords; try again in {math.ceil(wait)} s.")
            return HTTPStatus.TOO_MANY_REQUESTS, [*headers, ("Retry-After", str(math.ceil(wait)))], body
        if not right:
            _, headers, body = _form(to, "This is not the password.")
            return HTTPStatus.FORBIDDEN, headers, body
        until = str(int(self._now() + SESSION_S))
        secure = "; Secure" if environment.get("wsgi.url_scheme") == "https" else ""
        cookie = f"{self._cookie}={until}.{self._signed(until)}; Max-Age={SESSION_S}; Path=/; HttpOnly; SameSite=Strict"
        return _redirect(to, [("Set-Cookie", cookie + secure)])

    def _knows(self, environment: Environment) -> bool:
        try:
            held = SimpleCookie(environment.get("HTTP_COOKIE", "")).get(self._cookie)
        except CookieError:
            return False
        until, _, signature = str(held.value if held else "").partition(".")
        signed = hmac.compare_digest(signature.encode(), self._signed(until).encode())
        return signed and self._now() < int(until)

    def _signed(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


Answer = tuple[HTTPStatus, list[tuple[str, str]], bytes]


def password(path: str | None) -> str | None:
    """The password for the dashboard: a file's first line, else what $VQSEARCH_DASHBOARD_PASSWORD says, else none.

    Raises:
        UserError: the file can't be read, everyone may read it, or it holds no password.
    """
    if path is None:
        return os.environ.get(VARIABLE) or None
    try:
        with open(path, encoding="utf-8") as file:
            mode, word = os.fstat(file.fileno()).st_mode, file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"--password-file {path}: can't be read: {problem}") from None
    if not word:
        raise UserError(f"--password-file {path}: its first line is empty; expected a password")
    if stat.S_ISREG(mode) and stat.S_IMODE(mode) & stat.S_IRWXO:
        raise UserError(f"--password-file {path}: everyone on this machine may read it; chmod o= '{path}'")
    return word


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refusal(status: HTTPStatus, reason: str) -> Answer:
    """An answer that the dashboard's pages understand."""
    return status, [("Content-Type", "application/json")], json.dumps({"reason": reason}).encode()


def _form(to: str, problem: str = "") -> Answer:
    said = f'<p role="alert">{html.escape(problem)}</p>\n' if problem else ""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", policy)]
    return HTTPStatus.OK, headers, _PAGE.format(next=quote(to, safe=""), problem=said).encode()


def _redirect(to: str, headers: list[tuple[str, str]]) -> Answer:
    return HTTPStatus.SEE_OTHER, [("Location", to), *headers], b""


def _local(path: str) -> str:
    """A path of the dashboard; anything else could lead away from it."""
    safe = path.isascii() and path.isprintable() and path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if safe else "/"


def _field(environment: Environment, name: str) -> str:
    """A field of the form that was sent."""
    try:
        size = min(int(environment.get("CONTENT_LENGTH") or 0), LONGEST_FORM)
    except ValueError:
        return ""
    sent: str = environment["wsgi.input"].read(max(size, 0)).decode(errors="replace")
    return parse_qs(sent, keep_blank_values=True).get(name, [""])[0]


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host.lower().rpartition("]")[0].lstrip("[") if host.startswith("[") else host.lower().partition(":")[0]


def _digest(text: str) -> bytes:
    """Of one length whatever the text, so that a comparison tells nothing of it."""
    return hashlib.sha256(text.encode()).digest()


def _with_headers(start: Start) -> Start:
    def begin(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        # The dashboard lets every page of the web read its artifacts.
        kept = [(name, value) for name, value in headers if name.lower() != "access-control-allow-origin"]
        return start(status, kept + HEADERS, *rest)

    return begin
