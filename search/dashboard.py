"""The Optuna dashboard over any of our storages."""

from __future__ import annotations

from collections.abc import Callable
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from search.errors import UserError
from search.lease import is_lease


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in the standard library)
        """Requests are not logged."""


def serve(storage: BaseStorage, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        storage: what to show.
        host: address to listen on. The dashboard asks nobody who they are, and can delete studies.
        port: 0 for any free one.
        say: takes the line with the address.

    Raises:
        UserError: the port is taken.
    """
    listed = storage.get_all_studies
    # Leases are studies for the storage's sake alone; nobody wants to see them.
    storage.get_all_studies = lambda: [study for study in listed() if not is_lease(study.study_name)]  # type: ignore[method-assign]
    try:
        server = make_server(host, port, wsgi(storage), server_class=_Server, handler_class=_Handler)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: can't listen there: {error.strerror}; try --port 0") from None
    with server:
        say(f"the dashboard is at http://{host}:{server.server_port}/ (Ctrl-C ends it)")
        server.serve_forever()
