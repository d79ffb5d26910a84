"""The Turing test's page: requests of all kinds, and people in a headless Chromium."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import forks
import numpy as np
import pytest
from test_turing import make_trials, opposite

from src.errors import InputError
from src.turing import web
from src.turing.score import summarize
from src.turing.trials import read_rows


@contextmanager
def serving(trials, port=0):
    server = web.Server(port)
    thread = threading.Thread(target=server.ask, args=(trials, "me"))
    thread.start()
    while not hasattr(server, "policy"):
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


class Client:
    """Someone who speaks HTTP, over one connection."""

    def __init__(self, server, name="anna"):
        self.port, self.name = server.server_address[1], name
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def send(self, method, path, body=None, headers=None):
        self.connection.request(method, path, body, headers or {})
        reply = self.connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()

    def post(self, call, words, headers=None):
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self.send("POST", "/api/" + call, json.dumps(words), headers)

    def ask(self, call, **words):
        status, _, body = self.post(call, {"name": self.name, **words})
        return status, body if call == "pair" and status == 200 else json.loads(body)

    def take_one(self, trials, choose, seconds=0.0):
        """One trial; returns its number, or 0 when there is none left."""
        trial = self.ask("next")[1]["trial"]
        if trial:
            assert self.ask("pair", trial=trial)[0] == 200
            assert self.ask("show", trial=trial)[0] == 200
            answer = choose(trials.order(self.name)[trial - 1][1])
            assert self.ask("answer", trial=trial, answer=answer, seconds=seconds) == (200, {})
        return trial


# By HTTP


def test_simulated_people_over_200_trials(tmp_path):
    trials = make_trials(tmp_path / "trials.csv", count=200, size=8)
    with serving(trials) as server:
        right, left = Client(server, "right"), Client(server, "left")
        while right.take_one(trials, lambda side: side) + left.take_one(trials, lambda side: "left"):
            pass
        score = right.ask("result")[1]
        assert (score["trials"], score["rate_percent"], score["mistakes"]) == (200, 0, [])
        score = left.ask("result")[1]
        low, high = score["rate_interval_percent"]
        assert low < 50 < high and 45 <= score["rate_percent"] <= 55
        assert [m["side"] for m in score["mistakes"]] == ["right"] * score["wrong"]


def test_nothing_tells_the_original(tmp_path):
    """What comes before the end, but for the pixels, the trial's number and the time, is the same in every trial."""
    trials, seen = make_trials(tmp_path / "trials.csv", count=40), set()
    for pair in trials.pairs:
        pair.original[:] = 7  # such an image any file format would make small
    with serving(trials) as server:
        client = Client(server)
        for trial in range(1, 41):
            replies = [
                client.post("next", {"name": "anna"}),
                client.post("pair", {"name": "anna", "trial": trial}),
                client.post("show", {"name": "anna", "trial": trial}),
                client.post("answer", {"name": "anna", "trial": trial, "answer": "left", "seconds": 0}),
            ]
            left, right = np.frombuffer(replies[1][2], np.uint8).reshape(2, 32, 32, 3)
            assert all(np.array_equal(*both) for both in zip((left, right), trials.look("anna", trial)))
            for status, headers, body in replies:
                headers.pop("Date")
                if headers["Content-Type"] == "application/json":
                    assert b"photo" not in body
                    words = json.loads(body)
                    assert set(words) <= {"name", "trial", "elapsed"}
                    headers.pop("Content-Length")  # that of the decimals of the time
                seen.add((status, tuple(headers.items())))
    assert {row.result for row in trials.rows} == {"correct", "wrong"}
    assert len(seen) == 2  # one kind of JSON, one of pixels


def test_no_look_ahead_and_no_score_before_the_end(tmp_path):
    trials = make_trials(tmp_path / "trials.csv", count=2)
    with serving(trials) as server:
        client = Client(server)
        assert client.ask("pair", trial=2)[0] == client.ask("show", trial=2)[0] == client.ask("result")[0] == 409
        assert client.ask("answer", trial=1, answer="left", seconds=1)[0] == 409  # not shown yet
        for _ in range(2):
            client.take_one(trials, opposite)
        assert client.ask("result")[1]["wrong"] == 2
        assert client.ask("pair", trial=1)[0] == client.ask("pair", trial=2)[0] == 200
        for trial in (0, 3, -1, None, "1", True):
            assert client.ask("pair", trial=trial)[0] == client.ask("show", trial=trial)[0] == 409
            assert client.ask("answer", trial=trial, answer="left", seconds=1)[0] == 409
    assert len(trials.rows) == 2


FOREIGN = [
    {"Host": "evil.example"}, {"Host": "evil.example:{port}"}, {"Host": "127.0.0.1.evil.example:{port}"}, {"Host": ""},
    {"Host": "localhost:{port}@evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"}, {"Origin": "https://127.0.0.1:{port}"}, {"Origin": "http://localhost:{port}"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_foreign_host_or_origin(tmp_path, headers):
    trials = make_trials(tmp_path / "trials.csv")
    with serving(trials) as server:
        headers = {key: value.format(port=server.server_address[1]) for key, value in headers.items()}
        assert Client(server).send("GET", "/", headers=headers)[0] == 403
        assert Client(server).post("show", {"name": "anna", "trial": 1}, headers)[0] == 403
        assert not server.shown


def test_own_origin_and_a_tunnel_on_another_port(tmp_path):
    with serving(make_trials(tmp_path / "trials.csv")) as server:
        for host in (f"127.0.0.1:{server.server_address[1]}", "localhost:9999", "[::1]:80", "localhost"):
            headers = {"Host": host, "Origin": f"http://{host}"}
            assert Client(server).post("next", {"name": "anna"}, headers)[0] == 200


WRONG = [
    ("GET", "/turing.html", None, {}, 404),
    ("GET", "/../src/turing.py", None, {}, 404),
    ("GET", "//etc/passwd", None, {}, 404),
    ("GET", "/%2e%2e/%2e%2e/etc/passwd", None, {}, 404),
    ("GET", "http://evil.example/", None, {}, 403),
    ("POST", "/api/__init__", b'{"name": "a"}', {}, 404),
    ("POST", "/api/../next", b'{"name": "a"}', {}, 404),
    ("POST", "next", b'{"name": "a"}', {}, 404),
    ("PUT", "/", b"", {}, 501),
    ("POST", "/api/next", b'{"name": "a"}', {"Content-Type": "text/plain"}, 415),
    ("POST", "/api/next", b"{" + b" " * 999_998 + b"}", {}, 413),
    ("POST", "/api/next", b"", {"Content-Length": "99999999999999"}, 413),
    ("POST", "/api/next", b"", {"Content-Length": "-1"}, 411),
    ("POST", "/api/next", b"", {"Content-Length": "\xb2"}, 411),
    ("POST", "/api/next", b"2\r\n{}\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}, 411),
    ("POST", "/api/next", b"[" * 4000, {}, 400),
    ("POST", "/api/next", b"[]", {}, 400),
    ("POST", "/api/next", b"\xff\xfe", {}, 400),
    ("POST", "/api/next", b"{}", {}, 400),
    ("POST", "/api/next", b'{"name": 5}', {}, 400),
    ("POST", "/api/next", b'{"name": " \\u0000\\u202e\\ud800 "}', {}, 400),
    ("POST", "/api/answer", b'{"name": "anna", "trial": 1, "answer": "", "seconds": 1}', {}, 400),
    ("POST", "/api/answer", b'{"name": "anna", "trial": 1, "answer": "up", "seconds": 1}', {}, 400),
    ("POST", "/api/answer", b'{"name": "anna", "trial": 1, "answer": {}, "seconds": 1}', {}, 400),
    ("POST", "/api/answer", b'{"name": "anna", "trial": 1e999, "answer": "left", "seconds": 1}', {}, 409),
    ("POST", "/api/answer", b'{"name": "anna", "trial": [1], "answer": "left", "seconds": 1}', {}, 409),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status"), WRONG, ids=lambda x: str(x)[:40])
def test_wrong_requests_are_refused_and_change_nothing(tmp_path, capfd, method, path, body, headers, status):
    trials = make_trials(tmp_path / "trials.csv")
    with serving(trials) as server:
        client = Client(server)
        client.ask("show", trial=1)
        headers = {"Content-Type": "application/json", **headers}
        if headers.get("Content-Length") == "99999999999999":
            client.connection.putrequest(method, path)
            for header in headers.items():
                client.connection.putheader(*header)
            client.connection.endheaders()
            client.connection.sock.shutdown(socket.SHUT_WR)
            assert client.connection.getresponse().status == status
        else:
            reply = Client(server).send(method, path, body, headers)
            assert reply[0] == status
            assert b"Traceback" not in reply[2] and b"root:" not in reply[2]
        assert Client(server).ask("next") == (200, {"name": "anna", "trial": 1})
    assert trials.rows == [] and list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_second_answer_is_refused(tmp_path):
    trials = make_trials(tmp_path / "trials.csv")
    with serving(trials) as server:
        client = Client(server)
        client.take_one(trials, lambda side: side)
        assert client.ask("answer", trial=1, answer="left", seconds=0)[0] == 409
        assert client.ask("show", trial=1)[0] == 409
    assert [row.result for row in trials.rows] == ["correct"]


def test_an_answer_after_the_time_counts_as_none(tmp_path):
    trials = make_trials(tmp_path / "trials.csv", delay=0.3)
    with serving(trials) as server:
        client = Client(server)
        client.ask("show", trial=1)
        time.sleep(0.3 + web.GRACE + 0.05)
        assert client.ask("answer", trial=1, answer="left", seconds=0.1)[0] == 409
        client.ask("show", trial=2)
        time.sleep(0.3 + web.GRACE / 2)  # it was on its way
        assert client.ask("answer", trial=2, answer="left", seconds=0.25)[0] == 200
        client.ask("show", trial=3)
        time.sleep(0.3 + web.GRACE + 0.05)
        assert client.ask("next")[1]["trial"] == 4  # a page that was closed meanwhile
        client.ask("show", trial=4)
        time.sleep(0.4)
        client.ask("answer", trial=4, answer="left", seconds=0.35)  # late by its own word
    assert [row.answer for row in trials.rows] == ["", "left", "", ""]
    assert [row.result == "unanswered" for row in trials.rows] == [True, False, True, True]
    assert trials.rows[1].seconds == 0.25


def test_the_clock_starts_once_and_the_page_cannot_set_it_back(tmp_path):
    trials = make_trials(tmp_path / "trials.csv")
    with serving(trials) as server:
        client = Client(server)
        assert client.ask("show", trial=1)[1]["elapsed"] == 0
        time.sleep(0.8)
        assert client.ask("show", trial=1)[1]["elapsed"] >= 0.8
        for trial, seconds in enumerate((0.001, -1, 10**400, "1", None, True), 1):
            client.ask("show", trial=trial)
            if trial > 1:
                time.sleep(0.05)
            client.ask("answer", trial=trial, answer="left", seconds=seconds)
    assert trials.rows[0].seconds >= 0.8
    assert all(0.05 <= row.seconds < 1 for row in trials.rows[1:])


def test_no_answer_takes_less_than_no_time(tmp_path):
    trials = make_trials(tmp_path / "trials.csv")
    with serving(trials) as server:
        client = Client(server)
        client.ask("show", trial=1)
        assert client.ask("answer", trial=1, answer="left", seconds=-0.2)[0] == 200
        client.ask("show", trial=2)
        server.shown["anna"] = (2, time.monotonic() + 0.1)  # a second tab's request came later and was served first
        assert client.ask("answer", trial=2, answer="left", seconds=-0.05)[0] == 200
    assert all(row.seconds >= 0 for row in trials.rows) and len(trials.rows) == 2


HALF = b"POST /api/next HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def half_open(server, count):
    connections = [socket.create_connection(server.server_address, timeout=5) for _ in range(count)]
    for connection in connections:
        with suppress(OSError):  # it may have been hung up on already
            connection.sendall(HALF)
    return connections


def test_of_too_many_connections_the_longest_waiting_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "CONNECTIONS", 20)
    with serving(make_trials(tmp_path / "trials.csv")) as server:
        connections = half_open(server, 100)
        assert Client(server).ask("next") == (200, {"name": "anna", "trial": 1})
        assert len(server.waiting) <= 20
        with suppress(ConnectionError):
            assert connections[0].recv(100) == b""
        for connection in connections:
            connection.close()


def test_more_connections_than_files_may_be_open(tmp_path):
    child = Elsewhere(tmp_path / "trials.csv", 4, limit=60)
    try:
        connections = half_open(child, 110)  # the kernel accepts what the process has not yet
        client = Client(child)
        client.connection.timeout = 5
        assert client.ask("next") == (200, {"name": "anna", "trial": 1})
        for connection in connections:
            connection.close()
    finally:
        child.kill()


@pytest.mark.parametrize("slow", ["asks", "reads"])
def test_a_slow_connection_is_dropped(tmp_path, monkeypatch, slow):
    monkeypatch.setattr(web, "PATIENCE", 0.5)
    with serving(make_trials(tmp_path / "trials.csv", size=1024)) as server:
        body = b'{"name": "anna", "trial": 1}'
        head = b"POST /api/pair HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with socket.create_connection(server.server_address, timeout=10) as connection:
            connection.sendall(HALF if slow == "asks" else head % len(body) + body)
            deadline = time.monotonic() + 10
            while not server.waiting:
                time.sleep(0.01)
            while server.waiting:  # it is never silent for long
                assert time.monotonic() < deadline
                with suppress(OSError):
                    connection.sendall(b"X") if slow == "asks" else connection.recv(1)
                time.sleep(0.05)
        assert Client(server).ask("next")[0] == 200


def test_50_people_at_once(tmp_path):
    trials = make_trials(tmp_path / "trials.csv", count=4)

    def person(number):
        client = Client(server, f"person {number}")
        while client.take_one(trials, lambda side: side if number % 2 else opposite(side)):
            pass
        return client.ask("result")[1]["rate_percent"]

    with serving(trials) as server, ThreadPoolExecutor(50) as pool:
        assert list(pool.map(person, range(50))) == [100, 0] * 25
    again = make_trials(tmp_path / "trials.csv", count=4)
    assert len(again.rows) == 200 == len({(row.person, row.trial) for row in again.rows})
    for row in again.rows:
        pair, side = again.order(row.person)[row.trial - 1]
        assert (row.image, row.side) == (pair.name, side)


def test_two_tabs_of_one_person_give_one_answer(tmp_path, monkeypatch):
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (time.sleep(0.1), fsync(file)))  # a slow disk
    trials = make_trials(tmp_path / "trials.csv")
    with serving(trials) as server, ThreadPoolExecutor(20) as pool:
        Client(server).ask("show", trial=1)
        statuses = list(pool.map(lambda _: Client(server).ask("answer", trial=1, answer="left", seconds=0)[0], range(20)))
    assert sorted(statuses) == [200] + [409] * 19 and len(trials.rows) == 1


class Elsewhere:
    """A server in a process of its own, that can be killed."""

    def __init__(self, file, count, port=0, limit=1024):
        code = (
            f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
            "import sys; sys.path.append('tests/turing'); from test_turing import make_trials\n"
            "from src.turing.web import Server\n"
            f"Server({port}).ask(make_trials(sys.argv[1], count={count}), 'me')"
        )
        self.process = forks.Program(["-c", code, file], stdout=subprocess.PIPE)
        port = self.process.stdout.readline().rstrip("/\n").rpartition(":")[2]
        self.server_address = ("127.0.0.1", int(port))

    def kill(self):
        self.process.kill()
        self.process.communicate()


def test_a_killed_server_goes_on_where_it_was(tmp_path):
    trials, answered = make_trials(tmp_path / "unused.csv", count=1000), 0
    for _ in range(2):
        child = Elsewhere(tmp_path / "trials.csv", 1000)
        client = Client(child)
        threading.Timer(0.7, child.process.kill).start()
        try:
            first = client.ask("next")[1]["trial"]
            assert first - answered in (1, 2)  # the answer in flight may have been written
            answered = first - 1
            pair = b"".join(image.tobytes() for image in trials.look("anna", first))
            assert client.ask("pair", trial=first)[1] == pair
            while True:
                answered = client.take_one(trials, lambda side: side)
        except (OSError, http.client.HTTPException):
            child.kill()
        assert answered > 10
    rows = read_rows(tmp_path / "trials.csv")
    assert answered <= len(rows) <= answered + 1 and summarize(rows)["wrong"] == 0


def test_a_full_disk_is_said_and_the_trial_stays_open(tmp_path, capfd):
    trials = make_trials(tmp_path / "gone" / "trials.csv")
    with serving(trials) as server:
        client = Client(server)
        client.ask("show", trial=1)
        status, words = client.ask("answer", trial=1, answer="left", seconds=0)
        assert status == 507 and "could not be saved" in words["error"]
        (tmp_path / "gone").mkdir()
        assert client.ask("answer", trial=1, answer="left", seconds=0)[0] == 200
    assert "trials.csv: the answer cannot be saved" in capfd.readouterr().err


def test_a_taken_port(tmp_path):
    with serving(make_trials(tmp_path / "trials.csv")) as server:
        port = server.server_address[1]
        with pytest.raises(InputError, match=f"--port {port}: Address already in use; give another"):
            web.Server(port)


def test_the_page_needs_nothing_from_elsewhere():
    page = Path(web.__file__).with_name("page.html").read_text()
    for word in ("http:", "https:", "//cdn", "innerHTML", "insertAdjacent", "document.write", "eval("):
        assert word not in page


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("chromium and chromedriver (Debian: chromium-driver) are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "window-size=1000,800",
                 f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):  # fmt: skip
        options.add_argument("--" + word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Person:
    """Someone at the page, in a tab of their own."""

    def __init__(self, browser, server, name):
        self.browser, self.server, self.name = browser, server, name
        browser.switch_to.new_window("tab")
        self.tab = browser.current_window_handle
        browser.get(f"http://127.0.0.1:{server.server_address[1]}/")
        self.keys(name + "\ue007")

    def run(self, script):
        self.browser.switch_to.window(self.tab)
        return self.browser.execute_script("return " + script)

    def keys(self, keys):
        self.browser.switch_to.window(self.tab)
        self.browser.switch_to.active_element.send_keys(keys)

    def until(self, script, seconds=60):
        deadline = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < deadline, f"{script} did not come true; the page says: {self.run(TEXT)}"
            time.sleep(0.02)

    def pair(self, trial):
        """Wait for this trial."""
        self.until(f"!document.getElementById('pair').classList.contains('empty') && {TEXT}.includes('{trial} of ')")

    def click(self, side):
        self.browser.switch_to.window(self.tab)
        self.browser.find_element("id", side).click()

    def end(self):
        self.until("!document.getElementById('end').hidden")
        return self.run(TEXT)

    def leave(self):
        self.browser.switch_to.window(self.tab)
        complaints = self.browser.get_log("browser")
        self.browser.close()
        self.browser.switch_to.window(self.browser.window_handles[0])
        return complaints


TEXT = "document.body.innerText"
KEY = {"left": "ArrowLeft", "right": "ArrowRight"}


def test_clicks_and_keys_and_the_end_page(chromium, tmp_path):
    trials = make_trials(tmp_path / "trials.csv")
    with serving(trials) as server:
        name = "<img src=x onerror=document.title='hit'>"
        person = Person(chromium, server, name)
        sides = [side for _, side in trials.order(name)]
        person.pair(1)
        assert "%" not in person.run(TEXT) and "correct" not in person.run(TEXT)
        person.click(sides[0])
        person.pair(2)
        person.click(opposite(sides[1]))
        person.pair(3)
        wrong = KEY[opposite(sides[3])]
        for delay in (100, 200):  # impatience answers no other trial
            person.run(f"setTimeout(() => dispatchEvent(new KeyboardEvent('keydown', {{key: '{wrong}'}})), 300 + {delay})")
        person.run(f"setTimeout(() => dispatchEvent(new KeyboardEvent('keydown', {{key: '{KEY[sides[2]]}'}})), 300)")
        person.pair(4)
        person.run(f"dispatchEvent(new KeyboardEvent('keydown', {{key: '{wrong}', repeat: true}}))")  # still held down
        person.keys({"left": "\ue012", "right": "\ue014"}[sides[3]])
        end = person.end()
        assert f"Thank you, {name}!" in end
        assert "In 1 of the 4 pairs that you answered (25%)" in end and "interval is 1% to 81%" in end
        assert "Guessing would give 50%" in end
        assert f"2: {trials.order(name)[1][0].name}" in end and end.count("photo") == 1
        person.until("document.querySelectorAll('#mistakes canvas').length == 2")
        assert person.run("document.images.length") == 0 and person.run("document.title") == "Which one is real?"
        assert person.leave() == []
    assert [row.result for row in trials.rows] == ["correct", "wrong", "correct", "correct"]
    assert all(0 < row.seconds < 5 and row.person == name for row in trials.rows)


def test_who_waits_is_unanswered_after_two_seconds(chromium, tmp_path):
    trials = make_trials(tmp_path / "trials.csv", count=2, delay=2)
    with serving(trials) as server:
        person = Person(chromium, server, "waits")
        person.pair(1)
        start = time.monotonic()
        person.until("document.getElementById('pair').classList.contains('empty')")
        assert 1.6 < time.monotonic() - start < 2.4
        assert "No answer" in person.run(TEXT)
        assert "answered none of the 2 pairs" in person.end()
        assert person.run("document.getElementById('chart').hidden")
        person.leave()
    assert [row.result for row in trials.rows] == ["unanswered"] * 2
    assert all(abs(row.seconds - 2) < 0.3 for row in trials.rows)


def test_a_reload_goes_on_and_does_not_restart_the_clock(chromium, tmp_path):
    trials = make_trials(tmp_path / "trials.csv", count=3, delay=2)
    with serving(trials) as server:
        person = Person(chromium, server, "reloads")
        person.pair(1)
        person.click("left")
        person.pair(2)
        start = time.monotonic()
        time.sleep(0.9)
        chromium.refresh()
        person.pair(2)
        person.until("document.getElementById('pair').classList.contains('empty')")
        assert time.monotonic() - start < 2.5
        person.pair(3)
        time.sleep(0.3)
        chromium.refresh()
        person.pair(3)
        person.click("right")
        assert "Thank you, reloads!" in person.end()
        chromium.refresh()
        assert "Thank you, reloads!" in person.end()
        person.leave()
    assert [row.answer for row in trials.rows] == ["left", "", "right"]
    assert abs(trials.rows[1].seconds - 2) < 0.3 and trials.rows[2].seconds > 0.3


def test_two_people_at_once_and_a_restart_of_the_server(chromium, tmp_path):
    server = Elsewhere(tmp_path / "trials.csv", 2)
    anna, ben = Person(chromium, server, "anna"), Person(chromium, server, "ben")
    for person in (anna, ben):
        person.pair(1)
        person.click("left")
    anna.pair(2)
    server.kill()
    anna.click("right")
    anna.until("!document.getElementById('trouble').hidden")
    trials = make_trials(tmp_path / "trials.csv", count=2)
    with serving(trials, server.server_address[1]):
        for person in (anna, ben):
            person.pair(2)  # Anna's answer went to nobody: the pair is shown again
            person.click("right")
        assert "Thank you, anna!" in anna.end() and "Thank you, ben!" in ben.end()
        anna.leave()
        ben.leave()
    rows = [(row.person, row.trial, row.answer) for row in trials.rows]
    assert sorted(rows) == [(who, *what) for who in ("anna", "ben") for what in ((1, "left"), (2, "right"))]


def test_pixels_size_and_theme(chromium, tmp_path):
    trials = make_trials(tmp_path / "trials.csv")
    backgrounds = set()
    with serving(trials) as server:
        person = Person(chromium, server, "looks")
        for width, theme in ((1010, "light"), (375, "dark")):
            chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 700,
                                     "deviceScaleFactor": 1, "mobile": width < 500})  # fmt: skip
            chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme",
                                                                                  "value": theme}]})  # fmt: skip
            person.pair(1)
            time.sleep(0.2)
            backgrounds.add(person.run("getComputedStyle(document.body).backgroundColor"))
            boxes = [person.run(f"document.getElementById('{side}').getBoundingClientRect().toJSON()")
                     for side in ("left", "right")]  # fmt: skip
            assert boxes[0]["width"] == boxes[0]["height"] == boxes[1]["width"] and boxes[0]["top"] == boxes[1]["top"]
            assert boxes[0]["width"] % 32 == 0 and boxes[0]["width"] >= (384 if width > 1000 else 128)
            assert boxes[0]["left"] >= 0 and boxes[1]["right"] <= width and boxes[1]["bottom"] <= 700
            assert person.run("getComputedStyle(document.getElementById('left')).imageRendering") == "pixelated"
            assert person.run("document.documentElement.scrollWidth") <= width
        for side, image in zip(("left", "right"), trials.look("looks", 1)):
            shown = person.run(f"Array.from(document.getElementById('{side}').getContext('2d')"
                               ".getImageData(0, 0, 32, 32).data)")  # fmt: skip
            assert np.array_equal(np.array(shown).reshape(32, 32, 4)[..., :3], image)
        own = person.run("performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")
        assert own
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        person.leave()
    assert len(backgrounds) == 2
