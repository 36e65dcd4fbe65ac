"""Serves the page, onnxruntime-web and the networks to one browser, below a path that nobody can guess.

Only these files: names are looked up in lists, never joined to a folder. On the loopback interface unless another one is
asked for. Cross-origin isolation, which threads and a fine clock need, is asked of the browser by headers.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lrexport.errors import DeviceError
from lrexport.measure.targets.browser.desk import Busy, Desk, Outputs
from lrexport.measure.targets.browser.programs import Package

_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
_BYTES = "application/octet-stream"
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; style-src 'self'; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_MOST_POST_BYTES = 4_000_000
_HEAD_BYTES = 1_000_000  # names, types and shapes of outputs
_MOST_CONNECTIONS = 64
_SECONDS = 60.0  # of a connection without a request
_TOKEN_BYTES = 16
_CHUNK_BYTES = 1 << 18


class PageServer:
    """The server, in threads, until :meth:`close`; ``host`` and ``port`` are where it listens (port 0: any free one)."""

    def __init__(self, host: str, port: int, package: Package, desk: Desk) -> None:
        """Raises DeviceError if the address cannot be used."""
        self._files = _files(package)
        self.desk, self._token = desk, secrets.token_urlsafe(_TOKEN_BYTES)
        try:
            self._server = _Server(self, host, port)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DeviceError(f"cannot serve on {host}:{port}: {reason}", "Give another address or port.") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def url(self, host: str) -> str:
        """The page's address for a browser that reaches this machine as ``host``."""
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/{self._token}/"

    def close(self) -> None:
        """Stop serving and close every connection."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def is_ours(self, path: str) -> str | None:
        """What follows the token in a path; None if the token is not ours."""
        token, slash, rest = path.removeprefix("/").partition("/")
        is_right = hmac.compare_digest(token.encode(errors="replace"), self._token.encode())
        return rest.partition("?")[0] if is_right and slash else None

    def file(self, name: str) -> tuple[Path, str, bool] | None:
        """A file by its name in URLs: its path, its type, and whether it stays the same while the server runs."""
        if name in self._files:
            path = self._files[name]
            return path, _TYPES[path.suffix], True
        subject = self._subject(name, "model/")
        return (subject.path, _BYTES, False) if subject is not None else None

    def inputs(self, name: str) -> bytes | None:
        subject = self._subject(name, "inputs/")
        return subject.inputs if subject is not None else None

    def most_bytes(self, name: str) -> int | None:
        """The most bytes that a post to ``name`` may have; None if nothing is posted there."""
        if name in ("job", "beat", "answer"):
            return _MOST_POST_BYTES
        subject = self._subject(name, "outputs/")
        return subject.most_bytes + _HEAD_BYTES if subject is not None else None

    def accept(self, name: str, page: str, body: bytes) -> Any:
        """The answer to a post: JSON, or None. Raises Busy, ValueError for a bad post, DeviceError for other outputs."""
        if name == "job":
            return self.desk.ask(page, _object(body))
        self.desk.hear(page)
        if name == "answer":
            self.desk.post(_object(body))
        subject = self._subject(name, "outputs/")
        if subject is not None:
            try:
                subject.check(_outputs(body))
            except DeviceError as error:
                self.desk.post(error)
                raise
        return None

    def _subject(self, name: str, prefix: str) -> Any:
        number = name.removeprefix(prefix)
        if not name.startswith(prefix) or not (number.isascii() and number.isdigit() and len(number) < 10):
            return None
        return self.desk.subject(int(number))


def _files(package: Package) -> dict[str, Path]:
    """Files that any page may have, by their names in URLs."""
    files = {path.name: path for path in _PAGE.iterdir() if path.suffix in _TYPES}
    files[""] = files.pop("index.html")
    scripts = (path for path in package.folder.iterdir() if path.suffix in (".mjs", ".wasm"))
    return {**files, **{f"ort/{path.name}": path for path in scripts}}


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


def _outputs(body: bytes) -> Outputs:
    """Outputs as worker.js sends them: the length of a list of names, types and shapes, the list, and the values."""
    size = int.from_bytes(body[:4], "little")
    named = json.loads(body[4 : 4 + size])
    found, at = {}, 4 + size
    for name, kind, shape, length in named:
        if not (isinstance(name, str) and isinstance(kind, str) and isinstance(length, int) and 0 <= length <= len(body)):
            raise ValueError("not a list of outputs")
        found[name] = (kind, [int(axis) for axis in shape], body[at : at + length])
        at += length
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, pages: PageServer, host: str, port: int) -> None:
        self.pages = pages
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks the host's name up.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "lrexport", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.discard(request)
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are no news: the page asks again, or is missed."""

    def server_close(self) -> None:
        super().server_close()
        for request in list(self._open):
            self.shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lrexport", ""
    timeout = _SECONDS
    server: _Server

    def do_GET(self) -> None:
        pages = self.server.pages
        name = pages.is_ours(self.path)
        file = pages.file(name) if name is not None else None
        inputs = pages.inputs(name) if name is not None else None
        if file is not None:
            self._send_file(*file)
        elif inputs is not None:
            self._send(HTTPStatus.OK, inputs, _BYTES)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is here")

    def do_POST(self) -> None:
        pages = self.server.pages
        name = pages.is_ours(self.path)
        most = pages.most_bytes(name) if name is not None else None
        if name is None or most is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "nothing is here")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self._refuse(HTTPStatus.LENGTH_REQUIRED, "how long is it?")
        if int(length) > most:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {most} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return self._refuse(HTTPStatus.BAD_REQUEST, "incomplete")
        return self._answer(lambda: pages.accept(name, self.headers.get("X-Page", ""), body))

    def _answer(self, accepted: Callable[[], Any]) -> None:
        try:
            value = accepted()
        except Busy as error:
            return self._refuse(HTTPStatus.CONFLICT, str(error))
        except DeviceError as error:
            return self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, error.message)
        except (ValueError, TypeError):
            return self._refuse(HTTPStatus.BAD_REQUEST, "not a post of lrexport's page")
        if value is None:
            return self._send(HTTPStatus.NO_CONTENT, b"", _BYTES)
        return self._send(HTTPStatus.OK, json.dumps(value).encode(), "application/json")

    def _send_file(self, path: Path, kind: str, is_lasting: bool) -> None:
        with open(path, "rb") as file:
            size = path.stat().st_size
            self._start(HTTPStatus.OK, size, kind, is_lasting)
            while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
                self.wfile.write(chunk)
                size -= len(chunk)
        self.close_connection = self.close_connection or size > 0

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self._start(status, len(body), kind, False)
        self.wfile.write(body)

    def _start(self, status: HTTPStatus, size: int, kind: str, is_lasting: bool) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", "private, max-age=3600" if is_lasting else "no-store")
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """A short answer; a body that was not read makes the connection useless."""
        self.close_connection = True
        self._send(status, reason.encode(errors="replace"), "text/plain; charset=utf-8")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the terminal belongs to the command."""
