"""`steatosis review`: a page on which a person looks through the boxes of a manifest."""

import contextlib
import socket
from pathlib import Path

from steatosis_tf.roi.decision_rules import checked_reviewer
from steatosis_tf.roi.decisions import DecisionStore

DEFAULT_PORT = 8741


def review(
    manifest_path: str | Path,
    *,
    reviewer: str,
    port: int = DEFAULT_PORT,
    open_browser: bool = True,
) -> None:
    """Serve the review page on 127.0.0.1 until interrupted.

    A decision is on disk, in a store beside the manifest, before the page says so; the
    manifest follows within a moment. Several reviewers may run this on one manifest at a time,
    each on a port of their own. The page shows neither grades nor patients: the review is blind.

    Args:
        manifest_path: manifest.csv with ROI columns, as `steatosis roi` writes them.
        reviewer: goes into `roi_reviewer`, for example initials.
        port: of 127.0.0.1.
        open_browser: whether to open the page in the default browser.

    Raises:
        ValueError: if the manifest cannot be read or is empty, the reviewer's name is empty, or
            the port is taken.
        ImportError: if NiceGUI is not installed.
    """
    reviewer = checked_reviewer(reviewer)
    _check_port(port)
    try:
        from nicegui import app, ui
    except ImportError as error:
        raise ImportError(
            "The review page needs NiceGUI: pip install 'steatosis_tf[page]'."
        ) from error
    from steatosis_tf.roi.review_page import add_review_page

    store = DecisionStore(manifest_path)
    if not len(store):
        raise ValueError(f"Expected a manifest with frames. Received: {store.path.name} with none.")
    store.start_folding()
    app.on_shutdown(store.close)
    add_review_page(store, reviewer=reviewer)
    print(f"Review of {store.path.name} by {reviewer}: http://127.0.0.1:{port} (Ctrl+C ends)")
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl+C is how a review ends, not a failure
        ui.run(
            host="127.0.0.1",
            port=port,
            title="ROI review",
            favicon="◩",
            dark=True,
            tailwind=False,
            reload=False,
            # A busy machine may answer late; a page that reloads in between would only be slower.
            reconnect_timeout=60,
            show=open_browser,
            show_welcome_message=False,
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"Expected a free port from 1 to 65535. Received: port={port}, which cannot be "
                "used. Is another review running? Choose another with --port."
            ) from error
