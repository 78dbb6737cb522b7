"""The command line of ``rpe-d2 serve``."""

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import List, Optional

from rpe_d2.inference.web_page import build_page, load_gradio, theme
from rpe_d2.utils.errors import one_line_errors

from .arguments import add_model_arguments, load_segmenter, number_type, positive

_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_LOOPBACK = "127.0.0.1", "localhost", "::1"
_PORT = number_type("a whole number from 0 to 65535", lambda n: 0 <= n <= 65535 and n == int(n))


def main(argv: Optional[List[str]] = None) -> int:
    """Shows a page in the browser that segments uploaded images, until a signal ends it.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument or the model is wrong.
    """
    args = _parse(argv)
    before = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
    try:
        with one_line_errors(), tempfile.TemporaryDirectory() as folder:
            _serve(args, Path(folder))
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _serve(args: argparse.Namespace, folder: Path) -> None:
    """Serves the page until a KeyboardInterrupt. All files are in the folder."""
    uploads, results = folder / "uploads", folder / "results"
    results.mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # else one for all servers of the machine
    # Gradio asks its own server whether it has started.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), args.host]))
    load_gradio()
    port = _free_port(args.host, int(args.port))
    page = build_page(load_segmenter(args), results)
    try:
        _, url, _ = page.launch(
            server_name=f"[{args.host}]" if ":" in args.host else args.host,
            server_port=port,
            max_file_size=args.max_mb * 2**20,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            theme=theme(),
            quiet=True,
        )
        if args.host not in _LOOPBACK:
            print(f"note: everyone who reaches {args.host} can upload images")
        print(f"{url} - end with Ctrl-C", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Shows a page in the browser that segments uploaded images."
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address; default: 127.0.0.1, this machine alone"
    )
    parser.add_argument("--port", type=_PORT, default=7860, help="port (7860); 0: any free one")
    parser.add_argument(
        "--max-mb", type=positive, default=100, help="size limit of an upload in MB (100)"
    )
    return parser.parse_args(argv)


def _free_port(host: str, port: int) -> int:
    """Returns the port, or a free one for 0.

    Raises:
        ValueError: The port is taken, or the host is none of this machine's addresses.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no name of a host"
        raise ValueError(
            f"--host {host} --port {port} cannot be used ({reason}); allowed: an address "
            "of this machine and a free port"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
