"""The Turing test's window: a real one on a virtual display, with real clicks, keys and time."""

import json
import os
import select
import shutil
import signal
import subprocess
import time

import forks
import numpy as np
import pytest
from test_turing import ALONE, make_trials

from src.turing.score import summarize
from src.turing.trials import read_rows
from src.turing.window import image_length

SIZE = 16  # pixels of the test's images
PROGRAM = """
import sys
sys.path.append("tests/turing")
from test_turing import make_trials
from src.turing.window import ask, available
from src.errors import InputError
print(available(), flush=True)
for person, count, delay in (("hurried", 6, 2.0), ("knows", 3, 0.0), ("unlucky/one", 2, 0.0)):
    try:
        ask(make_trials(f"{sys.argv[1]}/{person}.csv", count, delay, size=16))
        print(person, "is done", flush=True)
    except InputError as error:
        print(error, flush=True)
"""


class Display:
    """Xvfb, what is to be seen on it, and a hand on mouse and keyboard."""

    def __init__(self, folder):
        self.file = folder / "Xvfb_screen0"
        read, write = os.pipe()
        self.server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", "1200x800x24", "-fbdir", folder, "-nolisten", "tcp"],
            pass_fds=[write], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(write)
        with os.fdopen(read) as number:
            self.environment = {**os.environ, "DISPLAY": ":" + number.readline().strip()}
        self.environment.pop("MPLBACKEND", None)
        self.environment.pop("WAYLAND_DISPLAY", None)

    def screen(self):
        """uint8 (H, W, 3): Xvfb keeps the screen in a file, in XWD format."""
        data = self.file.read_bytes()
        header = np.frombuffer(data, ">u4", 25)
        width, height, start = int(header[4]), int(header[5]), int(header[0] + 12 * header[19])
        return np.frombuffer(data, np.uint8, 4 * width * height, start).reshape(height, width, 4)[..., 2::-1]

    def do(self, *words):
        subprocess.run(["xdotool", *map(str, words)], env=self.environment, check=True)

    def click(self, x, y):
        self.do("mousemove", x, y, "click", 1)

    def colorful(self):
        """(top, bottom, left, right) of everything that is not gray: the pair; None if there is no pair."""
        red, green, blue = np.moveaxis(self.screen(), 2, 0)
        ys, xs = np.nonzero(np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue) > 3)
        return (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) if len(ys) > 2000 else None

    def until(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, "the window did not get there"
            time.sleep(0.05)
        return result

    def pair(self, trials, person, trial):
        """Wait for exactly this pair, pixels enlarged a whole number of times; returns side -> its middle (x, y)."""

        def places():
            if not (box := self.colorful()):
                return None
            top, bottom, left, right = box
            self.length = length = bottom - top
            screen, half, pixel = self.screen()[top:bottom], length // 2, np.ones((length // SIZE,) * 2 + (1,), np.uint8)
            shown = screen[:, left : left + length], screen[:, right - length : right]
            wanted = (np.kron(image, pixel) for image in trials.look(person, trial))
            if not all(np.array_equal(*both) for both in zip(shown, wanted)):
                return None
            return {"left": (left + half, top + half), "right": (right - half, top + half)}

        return self.until(places)


@pytest.fixture(scope="module")
def display(tmp_path_factory):
    missing = [program for program in ("Xvfb", "xdotool") if not shutil.which(program)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed (Debian: xvfb xdotool)")
    pytest.importorskip("tkinter", reason="python3-tk is not installed")
    display = Display(tmp_path_factory.mktemp("display"))
    yield display
    display.server.terminate()
    display.server.wait()


def test_people_at_the_window(display, tmp_path):
    program = forks.Program(["-c", PROGRAM, tmp_path], env=display.environment, stdout=subprocess.PIPE, text=False, bufsize=0)

    def says():
        assert select.select([program.stdout], [], [], 20)[0], "the window does not end"
        return program.stdout.readline().decode()

    def welcome():
        display.until(lambda: display.screen().any())
        time.sleep(0.3)

    try:
        assert says() == "True\n"
        person, trials = "hurried", make_trials(tmp_path / "unused.csv", 6, 2.0, size=SIZE)
        welcome()
        display.do("key", "Return")
        display.click(500, 300)
        time.sleep(0.8)
        assert display.colorful() is None  # no clock runs before the person has given a name
        display.do("type", "hurriedd")
        display.do("key", "BackSpace")
        display.click(500, 300)
        places = display.pair(trials, person, 1)
        assert 256 <= display.length <= 600
        display.click(*places["left"])
        places = display.pair(trials, person, 2)
        start = time.monotonic()
        display.click(places["left"][0], 20)  # beside the images
        display.do("key", "x")
        display.until(lambda: display.colorful() is None, 3)  # real seconds pass
        assert 1.6 < time.monotonic() - start < 2.4
        places = display.pair(trials, person, 3)
        display.do("mousemove", *places["right"], "click", "--repeat", 3, "--delay", 60, 1)  # answers only this one
        display.pair(trials, person, 4)
        display.do("key", "Left")
        display.pair(trials, person, 5)
        display.do("key", "Escape")
        assert says() == "hurried is done\n"
        rows = read_rows(tmp_path / "hurried.csv")
        assert [(row.trial, row.answer) for row in rows] == [(1, "left"), (2, ""), (3, "right"), (4, "left")]
        assert abs(rows[1].seconds - 2) < 0.3 and rows[1].result == "unanswered"
        assert all(0 < row.seconds < 2 for row in rows if row.answer)

        person, trials = "knows", make_trials(tmp_path / "unused.csv", 3, 0.0, size=SIZE)
        welcome()
        display.do("type", "knows")
        display.do("key", "Return")
        for trial, how in ((1, "mouse"), (2, "key"), (3, "mouse")):
            places, side = display.pair(trials, person, trial), trials.order(person)[trial - 1][1]
            if how == "key":
                display.do("key", side.capitalize())
            else:
                display.click(*places[side])
        display.until(lambda: display.colorful() is None)
        time.sleep(1)
        display.do("key", "Return")  # the next person
        display.do("type", "=other one")
        display.do("key", "Return")
        display.click(*display.pair(trials, "=other one", 1)["left"])
        display.until(lambda: display.colorful() is None)
        display.do("key", "Escape")
        assert says() == "knows is done\n"
        *rows, other = read_rows(tmp_path / "knows.csv")
        assert (other.person, other.trial, other.answer) == ("=other one", 1, "left")
        score = summarize(rows)
        assert (score["trials"], score["correct"], score["rate_percent"]) == (3, 3, 0)

        person, trials = "unlucky/one", make_trials(tmp_path / "unused.csv", 2, 0.0, size=SIZE)  # no such folder
        welcome()
        display.do("type", person)
        display.do("key", "Return")
        display.click(*display.pair(trials, person, 1)["right"])
        assert "the answer cannot be saved" in says()
        assert program.wait(10) == 0
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("phase", ["welcome", "pair", "end"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_ends_the_window_and_writes_the_report(display, tmp_path, phase, number, code):
    child = forks.Program(["-c", ALONE, tmp_path, "window"], env=display.environment, stdout=subprocess.PIPE)
    try:
        display.until(lambda: display.screen().any(), 30)
        time.sleep(0.3)
        answers = {"welcome": 0, "pair": 1, "end": 4}[phase]
        if phase != "welcome":
            display.do("type", "anna")
            display.do("key", "Return")
            for _ in range(answers):
                display.until(display.colorful)
                display.do("key", "Left")
                display.until(lambda: display.colorful() is None)
            display.until(display.colorful) if phase == "pair" else time.sleep(1)
        child.send_signal(number)
        output, _ = child.communicate(timeout=20)
        assert child.returncode == code and f"of {answers} answered trials" in output
    finally:
        child.kill()
    assert json.loads((tmp_path / "turing" / "turing.json").read_text())["summary"]["answered"] == answers


@pytest.mark.parametrize(
    ("window", "size", "length"),
    [
        ((1280, 720), 256, 512),
        ((1280, 720), 128, 512),
        ((1280, 720), 32, 544),
        ((1200, 662), 256, 512),
        ((600, 400), 256, 250),
    ],
)
def test_images_fit_the_window(window, size, length):
    """Pixels are repeated a whole number of times; below twice they are scaled smoothly."""
    assert image_length(*window, size) == length
