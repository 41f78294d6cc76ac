"""A webhook receiver that keeps what it was sent. Standard library only.

Run by itself it prints its URL and answers 204 until it is killed.
"""

import http.server
import queue
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class Receiver:
    """Listens on a free port of 127.0.0.1 for as long as the `with` block runs."""

    def __init__(self):
        # Bounded: a receiver that nobody reads answers 503 rather than grow.
        self._requests = queue.Queue(maxsize=1000)
        requests = self._requests

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                try:
                    requests.put_nowait(Request(self.path, headers, body))
                    status = 204
                except queue.Full:
                    status = 503
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def next(self, timeout):
        """The next request, in order of arrival."""
        try:
            return self._requests.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"the receiver was sent nothing within {timeout} s") from None


if __name__ == "__main__":
    with Receiver() as receiver:
        print(receiver.url, flush=True)
        threading.Event().wait()
