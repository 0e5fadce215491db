"""Serves the page of runs that go on, to this machine alone."""

from __future__ import annotations

import hashlib
import http.server
from collections.abc import Sequence
from pathlib import Path

from densecl.errors import UserError
from densecl.reporting.page import make_page
from densecl.reporting.run_files import changed, read_run


def serve(folders: Sequence[Path]) -> None:
    """Serves until Ctrl-C, at a free port of 127.0.0.1, which is printed.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
    """
    with Server(folders) as server:
        print(f"Watch it at http://127.0.0.1:{server.server_port}/ (Ctrl-C ends)", flush=True)
        server.serve_forever()


class Server(http.server.ThreadingHTTPServer):
    """Makes the page anew whenever it is asked for and a file of the runs has changed."""

    daemon_threads = True

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders = folders
        self._page: tuple[str, bytes] = "", b""

    def state(self) -> str:
        """Another word whenever the runs' files are others."""
        return hashlib.sha256(repr([changed(folder) for folder in self.folders]).encode()).hexdigest()[:16]

    def page(self) -> bytes:
        state = self.state()
        if self._page[0] != state:
            self._page = state, make_page([read_run(folder) for folder in self.folders], watch=state)
        return self._page[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):  # a name that leads here
            return self._answer(403, b"", "text/plain")
        try:
            if self.path == "/":
                self._answer(200, self.server.page(), "text/html; charset=utf-8")
            elif self.path == "/changed":
                self._answer(200, self.server.state().encode(), "text/plain")
            else:
                self._answer(404, b"", "text/plain")
        except UserError as error:  # the run's folder is gone
            self._answer(503, error.args[0].encode("utf-8", "backslashreplace"), "text/plain; charset=utf-8")
        except (BrokenPipeError, ConnectionResetError):  # the browser was closed
            pass

    def _answer(self, code: int, content: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # the terminal is for what the user asked for
        pass
