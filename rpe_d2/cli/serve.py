"""The command line of ``rpe-d2 serve``."""

import argparse
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import List, Optional

from rpe_d2.inference import Segmenter
from rpe_d2.inference.web_page import build_page, load_gradio, theme
from rpe_d2.utils.errors import one_line_errors

from .arguments import number_type, positive

_LOOPBACK = "127.0.0.1", "localhost", "::1"
_PORT = number_type("a whole number from 0 to 65535", lambda n: 0 <= n <= 65535 and n == int(n))
_SCORE = number_type("0 to 1", lambda value: 0 <= value <= 1)


def main(argv: Optional[List[str]] = None) -> int:
    """Shows a page in the browser that segments uploaded images, until a signal ends it.

    Returns:
        Exit status: 0, or 2 with a one-line error if an argument or the model is wrong.
    """
    args = _parse(argv)
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        load_gradio()
        port = _free_port(args.host, int(args.port))
        segmenter = Segmenter.load(args.model, args.weights, args.device, min_score=args.min_score)
        page = build_page(segmenter, Path(folder))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            _, url, _ = page.launch(
                server_name=args.host,
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
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)
    return 0


def _parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Shows a page in the browser that segments uploaded images."
    )
    parser.add_argument(
        "--model", required=True, help="the output folder of a training, or a configuration"
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the model's own")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument(
        "--min-score", type=_SCORE, metavar="SCORE", help="omit objects below this score"
    )
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
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port} cannot be used ({error.strerror}); allowed: an address "
            "of this machine and a free port"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
