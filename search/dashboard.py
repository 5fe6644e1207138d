"""The Optuna dashboard over any of our storages: what it shows, what it lets people change, and how it is served.

It serves all trials in one answer, and looks for the note of each among those of all. So it gets trials that are made
ready once, without what only a search reads, and notes are put into its answers here.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import re
import socket
import threading
from collections.abc import Callable, Container, Iterable
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import wsgi

from search import lease, records
from search.attachments import PictureStore
from search.errors import UserError
from search.login import Application, Environment, Guard, Start, refusal

WARM_S = 5.0
"""Seconds that reading the studies may take before the address is told."""

NOTE = re.compile(r"dashboard:(?P<trial>\d+):note_(?P<part>ver|str:\d+)")
"""How the dashboard spells, among the attributes of a study, the notes of its trials."""

CHANGES = (
    ("PUT", re.compile(r"/api/studies/\d+/(\d+/)?note")),
    ("DELETE", re.compile(r"/api/studies/(?P<study>\d+)")),
)
"""What people may change; trials are the driver's alone, and a study of another name would not go on."""


UNUSED = ('[aria-label="rename study"]',)
UNUSED_UNLESS_WRITING = ('[aria-label="delete study"]',)
"""Buttons of the dashboard for what is never, or not now, let through."""


def _passed_on(name: str) -> Any:
    def call(self: Shown, *arguments: Any, **options: Any) -> Any:
        return getattr(self.inner, name)(*arguments, **options)

    return call


class Shown(BaseStorage):
    """A storage as people are to see it: without leases, and without what only a search reads.

    Args:
        inner: the storage.

    Attributes:
        inner: the storage, with Optuna's cache of finished trials.
    """

    def __init__(self, inner: BaseStorage) -> None:
        self.inner = optuna.storages.get_storage(inner)
        self._ready: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}

    create_new_study = _passed_on("create_new_study")
    delete_study = _passed_on("delete_study")
    set_study_user_attr = _passed_on("set_study_user_attr")
    set_study_system_attr = _passed_on("set_study_system_attr")
    get_study_id_from_name = _passed_on("get_study_id_from_name")
    get_study_name_from_id = _passed_on("get_study_name_from_id")
    get_study_directions = _passed_on("get_study_directions")
    get_study_user_attrs = _passed_on("get_study_user_attrs")
    get_study_system_attrs = _passed_on("get_study_system_attrs")
    create_new_trial = _passed_on("create_new_trial")
    set_trial_param = _passed_on("set_trial_param")
    set_trial_state_values = _passed_on("set_trial_state_values")
    set_trial_intermediate_value = _passed_on("set_trial_intermediate_value")
    set_trial_user_attr = _passed_on("set_trial_user_attr")
    set_trial_system_attr = _passed_on("set_trial_system_attr")
    get_trial = _passed_on("get_trial")
    get_trial_id_from_study_id_trial_number = _passed_on("get_trial_id_from_study_id_trial_number")

    def get_all_studies(self) -> list[FrozenStudy]:
        """As Optuna's, without leases, notes of trials, and attributes that people do not read."""
        studies = [study for study in self.inner.get_all_studies() if not lease.is_lease(study.study_name)]
        for study in studies:
            study.user_attrs = records.readable(study.user_attrs)
            study.system_attrs = {k: v for k, v in study.system_attrs.items() if not NOTE.fullmatch(k)}
        return studies

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: ARG002 - what is given away is a copy already
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """As Optuna's, not to be changed; each trial is made ready once for as long as it stays the same."""
        return [self._shown(trial) for trial in self.inner.get_all_trials(study_id, deepcopy=False, states=states)]

    def notes(self, study_id: int) -> dict[int, dict[str, Any]]:
        """The notes of a study's trials as the dashboard says them, by the trial's id."""
        found: dict[int, dict[str, Any]] = {}
        for key, value in self.inner.get_study_system_attrs(study_id).items():
            if match := NOTE.fullmatch(key):
                found.setdefault(int(match["trial"]), {})[match["part"]] = value
        return {
            trial: {
                "version": int(parts.get("ver", 0)),
                "body": "".join(parts.get(f"str:{number}", "") for number in range(len(parts))),
            }
            for trial, parts in found.items()
        }

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        known, ready = self._ready.get(trial._trial_id, (None, trial))
        if known is trial and trial.state.is_finished():
            return ready
        ready = copy.copy(trial)
        ready.user_attrs = records.readable(trial.user_attrs)
        # The dashboard knows constraints only as Optuna wrote them before version 5.
        ready._system_attrs = {**trial._system_attrs, "constraints": list(trial.constraints.values())}
        self._ready[trial._trial_id] = trial, ready
        return ready


class Pages:
    """The dashboard's pages and what they ask for.

    Args:
        storage: what to show.
        write: let people edit notes and delete studies.
    """

    def __init__(self, storage: BaseStorage, write: bool) -> None:
        self._shown = Shown(storage)
        self._write = write
        bottle = wsgi(self._shown, PictureStore(self._shown.inner))
        bottle.catchall = False  # so that we hear of pictures that are not there
        self._inner: Application = bottle

    def __call__(self, environment: Environment, start: Start) -> Iterable[bytes]:
        """Answer one request."""
        method, path = environment["REQUEST_METHOD"], environment.get("PATH_INFO", "")
        if method == "GET" and (study := re.fullmatch(r"/api/studies/(\d+)", path)):
            return self._study(int(study[1]), environment, start)
        if method == "GET" and re.fullmatch("/dashboard(/.*)?", path):
            return self._page(environment, start)
        refused = self._refused(method, path)
        if refused is None:
            try:
                return self._inner(environment, start)
            except ArtifactNotFound as error:
                refused = HTTPStatus.NOT_FOUND, str(error)
        status, headers, body = refusal(*refused)
        start(f"{status.value} {status.phrase}", [*headers, ("Content-Length", str(len(body))), ("Allow", "GET, HEAD")])
        return [body]

    def warm(self) -> None:
        """Read what pages will ask for, so that the first one does not wait for it."""
        with contextlib.suppress(Exception):  # Whoever asks for it is told what is wrong with it.
            for study in self._shown.get_all_studies():
                self._shown.get_all_trials(study._study_id)

    def _refused(self, method: str, path: str) -> tuple[HTTPStatus, str] | None:
        if method in ("GET", "HEAD"):
            return None
        if not self._write:
            return HTTPStatus.METHOD_NOT_ALLOWED, "read-only; vqsearch dashboard --write lets people change something"
        matches = [match for known, pattern in CHANGES if known == method and (match := pattern.fullmatch(path))]
        if not matches:
            reason = "trials are written by the search alone; notes can be edited and studies deleted"
            return HTTPStatus.METHOD_NOT_ALLOWED, reason
        if study := matches[0].groupdict().get("study"):
            with contextlib.suppress(KeyError):
                name = self._shown.get_study_name_from_id(int(study))
                if holder := lease.driver(self._shown.inner, name):
                    reason = f"process {holder.pid} on {holder.host} is running this study; vqsearch stop stops it"
                    return HTTPStatus.CONFLICT, reason
        return None

    def _page(self, environment: Environment, start: Start) -> Iterable[bytes]:
        """The dashboard's one page, without the buttons that would only be refused; on phones, as wide as it needs."""
        unused = [*UNUSED, *([] if self._write else UNUSED_UNLESS_WRITING)]
        style = f"<style>{', '.join(unused)} {{ display: none !important; }}</style></head>"
        environment = {k: v for k, v in environment.items() if not k.startswith(("HTTP_IF_", "HTTP_RANGE"))}
        status, headers, body = self._answered(environment)
        body = body.replace(b"</head>", style.encode(), 1).replace(b"width=device-width, initial-scale=1", b"width=900")
        for stale in ("Last-Modified", "ETag", "Accept-Ranges"):
            headers.pop(stale, None)
        start(status, [*(headers | {"Content-Length": str(len(body)), "Cache-Control": "no-cache"}).items()])
        return [body]

    def _answered(self, environment: Environment) -> tuple[str, dict[str, str], bytes]:
        answered: list[Any] = []
        body = b"".join(self._inner(environment, lambda *answer: answered.extend(answer)))
        return answered[0], dict(answered[1]), body

    def _study(self, study_id: int, environment: Environment, start: Start) -> Iterable[bytes]:
        """A study with all its trials and their notes."""
        status, headers, body = self._answered(environment)
        if status.startswith("200"):
            said, notes = json.loads(body), self._shown.notes(study_id)
            for trial in said["trials"] + said["best_trials"]:
                trial["note"] = notes.get(trial["trial_id"], trial["note"])
            body = json.dumps(said, separators=(",", ":")).encode()
            if "gzip" in environment.get("HTTP_ACCEPT_ENCODING", ""):
                body = gzip.compress(body, compresslevel=1)
                headers["Content-Encoding"] = "gzip"
            headers["Content-Length"] = str(len(body))
        start(status, list(headers.items()))
        return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks the network for our name, and may wait for it
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in the standard library)
        """Requests are not logged."""


def listen(
    storage: BaseStorage, host: str, port: int, *, password: str | None = None, write: bool = False
) -> WSGIServer:
    """A server that listens already, and has read what its first pages ask for.

    Args:
        storage: what to show.
        host: address to listen on.
        port: 0 for any free one.
        password: what people must know; None only where `login.is_loopback(host)`.
        write: let people edit notes and delete studies.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    pages = Pages(storage, write)
    kind = _Server6 if ":" in host else _Server
    try:
        server = make_server(host, port, Guard(pages, host, password), server_class=kind, handler_class=_Handler)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: can't listen there: {error.strerror}; try --port 0") from None
    warming = threading.Thread(target=pages.warm, name="warm", daemon=True)
    warming.start()
    warming.join(WARM_S)
    return server


def serve(server: WSGIServer, study: int | None, say: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        server: from `listen`.
        study: id of the one whose page is named; None for the list of all.
        say: takes the line with the address.
    """
    host = str(server.server_address[0])
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    page = "" if study is None else f"dashboard/studies/{study}"
    with server:
        say(f"the dashboard is at http://{name}:{server.server_port}/{page} (Ctrl-C ends it)")
        server.serve_forever()
