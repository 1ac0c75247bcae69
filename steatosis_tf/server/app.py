"""One web server for all pages: on this machine only, and closed to every other web site.

A page is `templates/<name>.html`, which fills in what `base.html` leaves open, with its scripts and
its look in `static`. It loads nothing from elsewhere and talks to the server by requests under its
own paths, so that a second page needs its routes and its files, and has all that is here.
"""

import contextlib
import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from steatosis_tf.grades import NOTICE

_STATIC = Path(__file__).parent / "static"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
    trim_blocks=True, undefined=jinja2.StrictUndefined,
)  # fmt: skip
#: Pages are served to this machine alone where nobody asks for more.
LOOPBACK = "127.0.0.1"
_OWN_HOSTS = (LOOPBACK, "localhost")
_READING = ("GET", "HEAD")
_MAX_BODY_BYTES = 1 << 16  # a decision has under a kilobyte
_SHUTDOWN_S = 5
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(
    page: str,
    *,
    host: str = LOOPBACK,
    max_body_bytes: int = _MAX_BODY_BYTES,
    at_end: Callable[[], None] = lambda: None,
) -> FastAPI:
    """An application with one page at `/`; routes are added to it.

    A ValueError of a route becomes a 422 with its message, an OSError a 503. Every call that may
    change something needs the header `X-Token` with the token that stands in the page.

    Args:
        page: name of a file `templates/<page>.html`, and of `static/<page>.js` and `.css`.
        host: name or address in the browser's address bar. Where it is not this machine's own,
            the page itself opens with the token only, which `serve` prints.
        max_body_bytes: of one request.
        at_end: called when the server ends, by Ctrl+C or by SIGTERM.

    Example:
        >>> from fastapi.testclient import TestClient
        >>> app = make_app("review")
        >>> TestClient(app, base_url="http://localhost").get("/").headers["x-frame-options"]
        'DENY'
        >>> TestClient(app, base_url="http://elsewhere.example").get("/").status_code
        400
    """
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_ending(at_end),
        telemetry={"auto_configure": False},  # nothing is sent anywhere
    )
    token = secrets.token_urlsafe(32)
    app.state.token = token
    template = _TEMPLATES.get_template(f"{page}.html")
    page_html = template.render(page=page, token=token, notice=NOTICE)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = _refusal(request, token, host, max_body_bytes) or await call_next(request)
        response.headers.update(_HEADERS)
        return response

    @app.api_route("/", methods=["GET", "HEAD"])
    def index() -> HTMLResponse:
        return HTMLResponse(page_html)

    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(ValueError, _not_possible)
    app.add_exception_handler(OSError, _not_now)
    return app


def _ending(at_end: Callable[[], None]) -> Callable[[FastAPI], Any]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        at_end()

    return lifespan


def _refusal(request: Request, token: str, host: str, max_body_bytes: int) -> Response | None:
    """Answer to a call that does not come from the page itself; None if it does."""
    headers = request.headers
    named = headers.get("host", "")
    known = {host, *_OWN_HOSTS}
    if named.rpartition(":")[0] not in known and named not in known:
        # A web site may have its own name point to this machine.
        return _said(400, f"Expected the host {host}. Received another.")
    # https where a proxy adds TLS; the page knows its own address by the host alone.
    if headers.get("origin", f"http://{named}") not in (f"http://{named}", f"https://{named}"):
        return _said(403, "Expected a call from the page itself. Received one from elsewhere.")
    if request.method in _READING:
        given = headers.get("x-token") or request.query_params.get("token", "")
        is_open = host in _OWN_HOSTS or request.url.path.startswith("/static/")
        if is_open or _same(given, token):
            return None
        return _said(403, "Expected the address with the token that the server has printed.")
    if not _same(headers.get("x-token", ""), token):
        text = "The server was started anew since this page was opened: load the page again."
        return _said(403, text)
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length[:12]) > max_body_bytes:
        return _said(413, f"Expected at most {max_body_bytes} bytes. Received more, or no length.")
    return None


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _said(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": text}, status)


def _not_understood(request: Request, error: Any) -> JSONResponse:
    # Without what was received: JSON has no way to say 1e400 back.
    faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return _said(422, f"Expected other values. Received: {'; '.join(faults)}.")


def _not_possible(request: Request, error: Exception) -> JSONResponse:
    return _said(422, str(error))


def _not_now(request: Request, error: Exception) -> JSONResponse:  # TimeoutError among them
    reason = getattr(error, "strerror", None) or str(error)
    return _said(503, f"Not saved: a file cannot be used ({reason}).")


@contextlib.contextmanager
def bound_socket(port: int, host: str = LOOPBACK) -> Iterator[socket.socket]:
    """A socket that nobody else can take from here on.

    Args:
        port: 0 leaves the choice to the system.
        host: name or IPv4 address of this machine.

    Raises:
        ValueError: if the port is taken or is none, or the host is not this machine.
    """
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
            made.listen()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"Expected a free port from 1 to 65535, or 0 for any. Received: port={port}, which "
                "cannot be used. Does another page run? Choose another with --port."
                + (f" Is {host!r} this machine?" if host not in _OWN_HOSTS else "")
            ) from error
        yield made


def serve(
    app: FastAPI, bound: socket.socket, *, title: str, open_browser: bool, host: str = LOOPBACK
) -> None:
    """Serve until interrupted. Says the address, with the real port, in one line.

    Args:
        app: of `make_app`.
        bound: of `bound_socket`.
        title: what is served, for that line.
        open_browser: whether to open the page in the default browser.
        host: as given to `make_app` and `bound_socket`.
    """
    url = f"http://{host}:{bound.getsockname()[1]}"
    if host not in _OWN_HOSTS:
        url += f"/?token={app.state.token}"
    print(f"{title}: {url} (Ctrl+C ends)", flush=True)
    if open_browser:  # a call before the server is ready waits in the socket
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
    settings = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl+C is how a page ends, not a failure
        _Server(settings).run(sockets=[bound])


class _Server(uvicorn.Server):
    """Ends once: a second Ctrl+C would cut its end short, and print a traceback of that."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            # Calls that are cut off then are no faults to be told with their tracebacks.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            super().handle_exit(sig, frame)
