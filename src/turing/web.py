"""The Turing test's page: a server on 127.0.0.1 that checks every request."""

import base64
import contextlib
import hashlib
import json
import math
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from src.errors import InputError
from src.turing.score import tell
from src.turing.trials import clean_name

GRACE = 0.5  # seconds that an answer may be on its way
BODY_LIMIT = 4096  # bytes
CONNECTIONS = 300  # at once: some more than 50 browsers open
PATIENCE = 60  # seconds for a request to come and its reply to go
_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.ASCII)  # any port: a tunnel may have its own


class Refused(Exception):
    """A request that is not granted: HTTP status and reason."""


class _Ended(Exception):
    """A signal ends the test."""


class Server(ThreadingHTTPServer):
    """Listens from its making on; answers once `ask` has given it the trials. InputError when the port is taken."""

    request_queue_size = 128  # many people may arrive in the same moment

    def __init__(self, port):
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise InputError(f"--port {port}: {error.strerror}; give another one, or 0 for any free port") from error
        self.lock = threading.Lock()
        self.shown = {}  # person -> (trial, time.monotonic() when its pair appeared)
        self.waiting = {}  # connection -> time.monotonic() of its opening or last reply; threads only set and pop

    def ask(self, trials, login, signals=()):
        """Serve the test until there is something in `signals`."""
        self.trials, self.signals = trials, signals
        page = Path(__file__).with_name("page.html").read_bytes()
        test = json.dumps({"total": len(trials), "delay": trials.delay, "size": trials.size})
        self.page = page.replace(b"{{test}}", test.replace('"', "&quot;").encode())
        script = re.search(rb"<script>(.*)</script>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
        self.policy = (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        port = self.server_address[1]
        print(f"the test is at http://127.0.0.1:{port}/")
        print(f"from elsewhere, first: ssh -L {port}:127.0.0.1:{port} {login}@{socket.gethostname()}")
        print("Ctrl-C ends it", flush=True)
        with contextlib.suppress(_Ended):
            self.serve_forever(poll_interval=0.2)
        self.lock.acquire()  # for good: no answer after the summary
        self.server_close()

    # Connections: a thread for each, but not too many, and none for ever.

    def process_request(self, request, client_address):
        self.waiting[request] = time.monotonic()
        if len(self.waiting) > CONNECTIONS:
            self._drop_one()
        super().process_request(request, client_address)

    def get_request(self):
        try:
            return super().get_request()
        except OSError:  # this process may open no more files
            self._drop_one()
            raise

    def service_actions(self):
        """Called by serve_forever several times a second."""
        if self.signals:
            raise _Ended
        while min(self.waiting.copy().values(), default=math.inf) < time.monotonic() - PATIENCE:
            self._drop_one()

    def _drop_one(self):
        """Hang up on the connection that has been waiting longest; its thread then closes it."""
        if waiting := self.waiting.copy():
            oldest = min(waiting, key=waiting.get)
            self.waiting.pop(oldest, None)
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request):
        self.waiting.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # a page that went away is no error

    # What the page may ask for. All of it in the lock; `now` is when the request came.

    def _current(self, person, now):
        """This person's open trial, 0 at the end. One whose time is over is closed here, as unanswered."""
        shown, since = self.shown.get(person, (0, now))
        delay = self.trials.delay
        if delay and now - since > delay + GRACE:
            del self.shown[person]
            self.trials.answer(person, shown, "", delay)
        return self.trials.next_trial(person)

    def _expect(self, person, request, now):
        """The open trial; Refused when the request is about any other."""
        trial, current = request.get("trial"), self._current(person, now)
        if type(trial) is not int or trial != current or not current:
            raise Refused(409, f"not the open trial, which is {current}" if current else "all trials are answered")
        return trial

    def next(self, person, request, now):
        return {"name": person, "trial": self._current(person, now)}

    def pair(self, person, request, now):
        """Left and right as raw RGB, always of the same length: no format's size or header tells them apart."""
        trial = request.get("trial")
        if self.trials.next_trial(person):
            self._expect(person, request, now)
        elif type(trial) is not int or not 1 <= trial <= len(self.trials):
            raise Refused(409, "no such trial")
        return b"".join(image.tobytes() for image in self.trials.look(person, trial))

    def show(self, person, request, now):
        """Start the clock, once: a reloaded page hears how long it has been running."""
        trial = self._expect(person, request, now)
        _, since = self.shown.setdefault(person, (trial, now))
        return {"elapsed": now - since}

    def answer(self, person, request, now):
        trial, answer = self._expect(person, request, now), request.get("answer")
        if person not in self.shown:
            raise Refused(409, "this trial has not been shown")
        if answer not in ("left", "right") and (answer != "" or not self.trials.delay):
            raise Refused(400, "the answer is left or right")
        seconds = request.get("seconds")
        elapsed = max(0.0, now - self.shown[person][1])  # of two requests at once the later one may be served first
        if type(seconds) not in (int, float) or not max(0.0, elapsed - GRACE) <= seconds <= elapsed:
            seconds = elapsed  # the page knows better only within what the network can explain
        if self.trials.delay and seconds > self.trials.delay:
            answer = ""
        self.trials.answer(person, trial, answer, float(seconds))
        del self.shown[person]
        return {}

    def result(self, person, request, now):
        """Only at the end, for a score would teach."""
        if self.trials.next_trial(person):
            raise Refused(409, "there are trials left")
        result = self.trials.result(person)
        return result | {"text": tell(result)}


class Handler(BaseHTTPRequestHandler):
    """One connection: checks every request, then calls the server's method of the path's name."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "turing", ""
    wbufsize = -1  # headers and body leave together
    disable_nagle_algorithm = True
    calls = ("next", "pair", "show", "answer", "result")

    def log_message(self, *args):
        pass

    def handle_one_request(self):
        super().handle_one_request()
        if self.connection in self.server.waiting:
            self.server.waiting[self.connection] = time.monotonic()

    def do_GET(self):
        self._reply(self._page)

    def do_POST(self):
        self._reply(self._call)

    def _page(self, body):
        if self.path.partition("?")[0] != "/":
            raise Refused(404, "no such page")
        return self.server.page

    def _call(self, body):
        now = time.monotonic()
        api, _, call = self.path.rpartition("/")
        if api != "/api" or call not in self.calls:
            raise Refused(404, "no such page")
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "application/json is expected")
        request = None
        with contextlib.suppress(ValueError, RecursionError):
            request = json.loads(body)
        if not isinstance(request, dict):
            raise Refused(400, "a JSON object is expected")
        name = request.get("name")
        person = clean_name(name) if isinstance(name, str) else ""
        if not person:
            raise Refused(400, "give a name")
        try:
            with self.server.lock:
                return getattr(self.server, call)(person, request, now)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise Refused(507, "the answer could not be saved on the server; tell whoever runs it") from error

    def _body(self):
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,18}", length, re.ASCII):
            raise Refused(411, "a plain Content-Length is expected")
        if int(length) > BODY_LIMIT:
            for _ in range(min(int(length), 1 << 21) // BODY_LIMIT):  # heard out, so that the refusal is heard too
                self.rfile.read(BODY_LIMIT)
            raise Refused(413, f"more than {BODY_LIMIT} bytes")
        return self.rfile.read(int(length))

    def _reply(self, respond):
        status = 200
        try:
            body = self._body()
            hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
            if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]) or origins not in ([], ["http://" + hosts[0]]):
                raise Refused(403, "this page is for this machine only")  # another site, or DNS rebinding
            reply = respond(body)
        except Refused as refused:
            status, reason = refused.args
            reply, self.close_connection = {"error": reason}, True
        kind = "application/octet-stream"
        if isinstance(reply, dict):
            kind, reply = "application/json", json.dumps(reply).encode()
        elif reply is self.server.page:
            kind = "text/html; charset=utf-8"
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(reply)),
            "Content-Security-Policy": self.server.policy,
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        for name, value in {**headers, **({"Connection": "close"} if self.close_connection else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply)
