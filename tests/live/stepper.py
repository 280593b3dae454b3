"""An HTTP/1.1 origin that says what the test tells it to, when the test tells it."""

import contextlib
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

_PATIENCE_S = 60


class Asked(NamedTuple):
    """A request for a body or for patience."""

    method: str
    key: str | None
    """Idempotency-Key."""
    server: str | None
    """The server before this one, if it told its name in X-Server."""


class Stepper:
    """``with Stepper() as origin``: the body of ``/steps`` is what `say` was told, until `end`.

    One answer at a time takes the pieces. ``/hold`` answers only after `end`, ``/half`` gives half
    of a body of `WHOLE` bytes, anything else at once and with nothing (probes ask, too).
    """

    WHOLE = 400_000

    def __init__(self, address="127.0.0.1"):
        self.pieces = queue.SimpleQueue()
        self.closed = threading.Event()
        self.requests = []
        """`Asked`, in order of arrival."""
        self.server = ThreadingHTTPServer((address, 0), self._handler())
        self.server.daemon_threads = True
        self.port = self.server.server_port

    def say(self, piece):
        """Send this piece now."""
        self.pieces.put(piece)

    def end(self):
        """End the answer."""
        self.pieces.put(None)

    def close(self):
        """End all answers, now and from now on."""
        self.closed.set()
        for _ in range(1000):
            self.end()

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.close()
        self.server.shutdown()
        self.server.server_close()

    def _handler(stepper):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.read_body()
                if self.path == "/half":
                    with contextlib.suppress(OSError):
                        self.half()
                    return
                if self.path not in ("/steps", "/hold"):
                    self.send_response(200)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                told = (self.headers.get(name) for name in ("idempotency-key", "x-server"))
                stepper.requests.append(Asked(self.command, *told))
                with contextlib.suppress(OSError):
                    self.answer()

            do_POST = do_PUT = do_GET

            def read_body(self):
                if self.headers.get("transfer-encoding") != "chunked":
                    self.rfile.read(int(self.headers.get("content-length", 0)))
                    return
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()

            def half(self):
                self.send_response(200)
                self.send_header("content-length", str(stepper.WHOLE))
                self.end_headers()
                self.wfile.write(bytes(stepper.WHOLE // 2))
                self.close_connection = True
                stepper.closed.wait(_PATIENCE_S)

            def answer(self):
                if self.path == "/hold":
                    while self.next_piece() is not None:
                        pass
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                if self.path != "/hold":
                    while (piece := self.next_piece()) is not None:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")

            def next_piece(self):
                try:
                    return stepper.pieces.get(timeout=_PATIENCE_S)
                except queue.Empty:
                    self.close_connection = True
                    raise OSError("the test forgot this answer") from None

            def log_message(self, *_):
                pass

        return Handler
