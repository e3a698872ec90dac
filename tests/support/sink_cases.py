"""What the tests of sinks share: answers as a line gives them."""

import http.server
import json
import math
import socket
import subprocess
import threading
import time

from sprfast.engine.predictor import Result
from sprfast.errors import InputError
from sprfast.line import Answer
from sprfast.method.threshold import Verdict
from support.line_cases import eventually


def answer(id, verdict=Verdict.PASS, error=None):
    """An answer to a frame of now: half of the threshold, or twice as much."""
    if verdict is Verdict.ERROR and error is None:
        error = InputError("image: is no image")
    score = {Verdict.PASS: 0.5, Verdict.REJECT: 2.0, Verdict.ERROR: math.nan}[verdict]
    result = Result(verdict, score, 1.0, None, None, (32, 32), 1.0, None if error is None else str(error))
    return Answer(id, result, error, time.monotonic(), 0.01)


def connected(sink):
    """Whether it comes to be connected."""
    return eventually(lambda: not sink.fault())


def back(sink):
    """Whether it comes to be connected again, and be it with a fault of the last answer."""
    return eventually(lambda: not (said := sink.fault()) or "late" in said or "older" in said)


def free_port():
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def certificate(folder, name, *alternatives):
    """Paths of a new certificate, signed by itself, with these names, and of its key."""
    paths = folder / f"{name}.pem", folder / f"{name}-key.pem"
    parameters = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    named = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={','.join(alternatives)}")
    given = ("-out", paths[0], "-keyout", paths[1])
    subprocess.run(["openssl", *parameters, *named, *given], check=True, capture_output=True)
    return paths


class WebServer:
    """Takes posts; `status` is what it replies, `hold` lets its reply to a result wait."""

    def __init__(self, port=0):
        self.posts, self.headers, self.status, self.hold = [], [], 200, threading.Event()
        self.hold.set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.posts.append((self.path, body))
                outer.headers.append(dict(self.headers))
                if body["type"] == "result":
                    outer.hold.wait(30)
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def results(self):
        return [body for _, body in self.posts if body["type"] == "result"]

    def close(self):
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()
