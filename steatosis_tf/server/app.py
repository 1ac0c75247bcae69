"""One web server for all pages: on this machine only, and closed to every other web site.

A page is `static/<name>.html` with its scripts and `static/look.css`. It loads nothing from
elsewhere and talks to the server by requests under its own paths, so that a second page needs its
routes and its files, and has all that is here.
"""

import contextlib
import secrets
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

_STATIC = Path(__file__).parent / "static"
_HOST = "127.0.0.1"
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


def make_app(page: str, *, at_end: Callable[[], None] = lambda: None) -> FastAPI:
    """An application with one page at `/`; routes are added to it.

    A ValueError of a route becomes a 422 with its message, an OSError a 503. Every call that may
    change something needs the header `X-Token` with the token that stands in the page.

    Args:
        page: name of a file `static/<page>.html`; its `{{token}}` is filled in.
        at_end: called when the server ends, by Ctrl+C or by SIGTERM.

    Example:
        >>> from fastapi.testclient import TestClient
        >>> app = make_app("review")
        >>> TestClient(app, base_url="http://localhost").get("/").headers["x-frame-options"]
        'DENY'
        >>> TestClient(app, base_url="http://elsewhere.example").get("/").status_code
        400
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        at_end()

    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        telemetry={"auto_configure": False},  # nothing is sent anywhere
    )
    token = secrets.token_urlsafe(32)
    html = (_STATIC / f"{page}.html").read_text(encoding="utf-8").replace("{{token}}", token)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = _refusal(request, token) or await call_next(request)
        response.headers.update(_HEADERS)
        return response

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(html)

    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(ValueError, _not_possible)
    app.add_exception_handler(OSError, _not_now)
    return app


def _refusal(request: Request, token: str) -> Response | None:
    """Answer to a call that does not come from the page itself; None if it does."""
    headers = request.headers
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in (_HOST, "localhost") and host not in (_HOST, "localhost"):
        # A web site may have its own name point to this machine.
        return _said(400, f"Expected the host {_HOST}. Received another.")
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        return _said(403, "Expected a call from the page itself. Received one from elsewhere.")
    if request.method in _READING:
        return None
    if not secrets.compare_digest(headers.get("x-token", "").encode(), token.encode()):
        text = "The server was started anew since this page was opened: load the page again."
        return _said(403, text)
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length[:12]) > _MAX_BODY_BYTES:
        return _said(413, f"Expected at most {_MAX_BODY_BYTES} bytes. Received more, or no length.")
    return None


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
def bound_socket(port: int) -> Iterator[socket.socket]:
    """A socket of 127.0.0.1 that nobody else can take from here on.

    Args:
        port: 0 leaves the choice to the system.

    Raises:
        ValueError: if the port is taken or is none.
    """
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((_HOST, port))
            made.listen()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"Expected a free port from 1 to 65535, or 0 for any. Received: port={port}, which "
                "cannot be used. Does another page run? Choose another with --port."
            ) from error
        yield made


def serve(app: FastAPI, bound: socket.socket, *, title: str, open_browser: bool) -> None:
    """Serve until interrupted. Says the address, with the real port, in one line.

    Args:
        app: of `make_app`.
        bound: of `bound_socket`.
        title: what is served, for that line.
        open_browser: whether to open the page in the default browser.
    """
    url = f"http://{_HOST}:{bound.getsockname()[1]}"
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
        uvicorn.Server(settings).run(sockets=[bound])
