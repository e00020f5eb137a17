"""A page about a run that follows its metrics.jsonl while it trains: on this machine alone, with nothing from outside.

Only 127.0.0.1 is listened on, only the four paths below are answered, and only under the names of this machine: a page
elsewhere that points its own name at 127.0.0.1 is refused (DNS rebinding).
"""

import errno
import json
import time
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .. import runs
from ..errors import Refusal, one_line
from ..finite import finite

ADDRESS = "127.0.0.1"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
STATE = "/state.json"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def watch(run: Path, port: int) -> None:
    """Serve the page about `run` until Ctrl-C."""
    with server(run, port) as serving:
        print(f"http://{ADDRESS}:{serving.server_port}/ shows {run}, on this machine only; Ctrl-C ends it", flush=True)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print()


def server(run: Path, port: int) -> ThreadingHTTPServer:
    """The server, bound to `port` of this machine (0: any free one). Raises Refusal for no run and for a bad port."""
    if not 0 <= port < 2**16:
        raise Refusal(f"--port {port} given; allowed: 0 (any free one) to {2**16 - 1}")
    state(run)
    try:
        return ThreadingHTTPServer((ADDRESS, port), partial(Handler, run))
    except OSError as error:
        why = "taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise Refusal(f"port {port} cannot be used ({why}); name another with --port, or --port 0 for any") from error


def state(run: Path) -> dict[str, Any]:
    """What the page shows: the run's name and epochs, its log points, and the seconds since it last said anything."""
    runs.check_is_run(run)
    recipe, metrics, lines = run / runs.RECIPE, run / runs.METRICS, runs.read_metrics(run)
    try:
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        name, epochs = str(settings["name"]), int(settings["optimise"]["epochs"])
        finished = bool(lines) and int(lines[-1]["epoch"]) >= epochs
        last = (metrics if metrics.exists() else recipe).stat().st_mtime
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise Refusal(f"{run} cannot be read ({one_line(error)}); give a run that anchor train has begun") from error
    return {
        "name": name,
        "run": str(run),
        "epochs": epochs,
        "finished": finished,
        "silent": round(max(0.0, time.time() - last), 1),
        # Without what is no number: a part of a loss may be NaN.
        "lines": [{key: value for key, value in finite(line).items() if value is not None} for line in lines],
    }


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the page, its two files and the state."""

    server: ThreadingHTTPServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "anchor", ""
    timeout = 30

    def __init__(self, run: Path, *given: Any) -> None:
        self.run = run
        super().__init__(*given)

    def handle(self) -> None:
        with suppress(ConnectionError):  # a browser that has gone away misses nothing
            super().handle()

    def do_GET(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            self.answer(HTTPStatus.FORBIDDEN, "text/plain", b"only this machine may look\n")
        elif self.path in FILES:
            name, kind = FILES[self.path]
            self.answer(HTTPStatus.OK, kind, (resources.files(__package__) / name).read_bytes())
        elif self.path == STATE:
            self.answer_state()
        else:
            self.answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page\n")

    do_HEAD = do_GET

    def answer_state(self) -> None:
        try:
            status, content = HTTPStatus.OK, state(self.run)
        except Refusal as refusal:
            status, content = HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(refusal)}
        self.answer(status, "application/json", json.dumps(content).encode())

    def answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request every two seconds is no news."""
