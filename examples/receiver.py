#!/usr/bin/env python3
"""A customer's server, to try endpoints on. Python's standard library only.

  python3 examples/receiver.py                    plain HTTP on 127.0.0.1:9000
  python3 examples/receiver.py --port 9443 --cert server.pem --key server.key --client-ca ca.pem
                                                  TLS, and clients must show a certificate of that CA

It prints each delivery and answers 204, with these exceptions:

  POST /status/CODE     answers that
  POST /locked          401 without `x-api-key: open-sesame`, Basic hawser:open-sesame or a token of /token
  POST /token           a token server: client hawser, secret open-sesame (in the body or by Basic) or an ES256 assertion,
                        of which the signature is not checked
  GET  /seen/ID         the delivery with that webhook-id, headers and body; waits for it up to 10 s
  other methods         405
"""

import argparse
import base64
import json
import secrets
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

SECRET = "open-sesame"
BASIC = "Basic " + base64.b64encode(f"hawser:{SECRET}".encode()).decode()
TOKEN = secrets.token_urlsafe()

arrived = threading.Condition()
seen = {}  # by webhook-id; the last 1,000


class Customer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/token":
            return self.token(parse_qs(body.decode()))
        event = self.headers.get("webhook-id", "without an id")
        print(event, self.path, body.decode(errors="replace"), flush=True)
        with arrived:
            seen[event] = f"POST {self.path}\n{self.headers}".encode() + body + b"\n"
            if len(seen) > 1000:
                del seen[next(iter(seen))]
            arrived.notify_all()
        if self.path.startswith("/status/"):
            return self.answer(int(self.path.removeprefix("/status/")))
        if self.path == "/locked" and not self.unlocked():
            return self.answer(401)
        self.answer(204)

    def do_GET(self):
        if not self.path.startswith("/seen/"):
            return self.answer(405)
        event = self.path.removeprefix("/seen/")
        with arrived:
            found = arrived.wait_for(lambda: seen.get(event), timeout=10)
        self.answer(200 if found else 404, found or b"")

    def do_HEAD(self):
        self.answer(405)

    def unlocked(self):
        given = self.headers.get("authorization", "")
        return self.headers.get("x-api-key") == SECRET or given in (BASIC, f"Bearer {TOKEN}")

    def token(self, form):
        field = lambda name: form.get(name, [""])[0]
        known = self.headers.get("authorization") == BASIC
        known = known or (field("client_id"), field("client_secret")) == ("hawser", SECRET)
        if field("client_assertion"):
            head = field("client_assertion").split(".")[0]
            known = json.loads(base64.urlsafe_b64decode(head + "=="))["alg"] == "ES256"
        if field("grant_type") != "client_credentials" or not known:
            return self.answer(401, b'{"error": "invalid_client"}')
        self.answer(200, json.dumps({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600}).encode())

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--client-ca")
    given = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", given.port), Customer)
    if given.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.cert, given.key)
        if given.client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(given.client_ca)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
