"""The Turing test's window: a name, then a pair, a click or an arrow key, the next pair; then the next person."""

import textwrap
import time

import numpy as np
from PIL import Image

from src.errors import InputError
from src.turing.score import tell
from src.turing.trials import clean_name

PAUSE = 0.5  # seconds between two pairs: they are told apart, and a double click does not answer twice
TOP, BOTTOM, GAP = 100, 50, 30  # pixels around and between the images
FRAME = 90  # pixels of a screen's height that bars and the window's title take
DARK, LIGHT, DIM = "#303030", "#f0f0f0", "#a0a0a0"  # gray surroundings: they favor no color


def available():
    """Whether matplotlib finds a display and a toolkit."""
    import matplotlib.pyplot as plt

    figure = plt.figure()
    try:
        return figure.canvas.required_interactive_framework is not None
    finally:
        plt.close(figure)


def ask(trials, signals=()):
    """Ask people all their remaining trials; returns when the window is closed, or when there is something in `signals`.
    InputError if an answer is not saved."""
    _Window(trials, signals).open()


def image_length(width, height, size):
    """The length, in pixels, of each of two square images of `size` pixels in a window of width x height: `size` times a
    whole number, or below twice whatever fits."""
    length = max(32, min((width - 3 * GAP) // 2, height - TOP - BOTTOM))
    return length // size * size if length >= 2 * size else length


class _Window:
    """phase: welcome -> (pause -> pair)* -> end -> welcome"""

    def __init__(self, trials, signals):
        import matplotlib.pyplot as plt

        self.plt, self.trials, self.signals = plt, trials, signals
        self.phase, self.name, self.note, self.error, self.until = "welcome", "", "", None, 0.0
        with plt.rc_context({"toolbar": "None"}):
            self.figure = plt.figure("Visual Turing test", dpi=100, facecolor=DARK)
        self.canvas = self.figure.canvas
        window = getattr(self.canvas.manager, "window", None)
        tk = hasattr(window, "winfo_screenwidth")  # the other toolkits have other ways; there a small screen is assumed
        width, height = (window.winfo_screenwidth(), window.winfo_screenheight()) if tk else (1280, 720)
        length = image_length(width - GAP, min(height - FRAME, 512 + TOP + BOTTOM), trials.size)
        self.figure.set_size_inches(max(2 * length + 3 * GAP, 700) / 100, max(length + TOP + BOTTOM, 450) / 100)
        self.canvas.mpl_disconnect(self.canvas.manager.key_press_handler_id)  # matplotlib's own keys
        for event, handler in (("button_press", self.click), ("key_press", self.key), ("resize", self.draw)):
            self.canvas.mpl_connect(event + "_event", handler)
        self.timer = self.canvas.new_timer(interval=30)
        self.timer.add_callback(self.tick)

    def open(self):
        self.draw()
        self.timer.start()
        self.plt.show(block=True)
        self.timer.stop()
        self.plt.close(self.figure)
        if self.error:
            raise self.error

    def boxes(self):
        """Where the images stand: side -> (x, y) of the lower left corner, and their length."""
        width, height = map(int, self.figure.bbox.size)
        length = image_length(width, height, self.trials.size)
        y = BOTTOM + (height - TOP - BOTTOM - length) // 2
        return {"left": (width // 2 - GAP // 2 - length, y), "right": (width // 2 + GAP // 2, y)}, length

    def draw(self, event=None):
        width, height = self.figure.bbox.size
        self.figure.clear()
        getattr(self, "draw_" + self.phase)(height)
        self.bar = self.plt.Rectangle((width / 4, height - 70), width / 2, 8, color=LIGHT, transform=None)
        self.bar.set_animated(True)  # drawn by tick alone, over the rest
        self.figure.add_artist(self.bar)
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def text(self, y, words, color=LIGHT, size=15):
        self.figure.text(
            0.5, y / self.figure.bbox.height, words, color=color, size=size, ha="center", va="center", parse_math=False
        )

    def draw_welcome(self, height):
        limit = f"You have {self.trials.delay:g} seconds for each pair. " if self.trials.delay else ""
        self.text(height / 2 + 120, "Which one is the real photograph?", size=22)
        self.text(
            height / 2 + 30,
            "One of two images was colorized by a network. Click on the one\n"
            f"that you take for real, or press the left or right arrow key.\n{limit}Esc ends the test.",
        )
        self.text(height / 2 - 80, f"Your name: {self.name}|", size=18)
        self.text(BOTTOM / 2, "then click, or press Enter, to begin", DIM)

    def draw_pause(self, height, note=None):
        self.text(height - 35, f"{self.trial} of {len(self.trials)}")
        self.text(BOTTOM / 2, note or self.note, DIM)

    def draw_pair(self, height):
        self.draw_pause(height, "Which one is real?   ←  or  →")
        boxes, length = self.boxes()
        method = Image.Resampling.BICUBIC if length % self.trials.size else Image.Resampling.NEAREST
        for (x, y), image in zip(boxes.values(), self.trials.look(self.person, self.trial), strict=True):
            image = np.asarray(Image.fromarray(image).resize((length, length), method))
            self.figure.figimage(image, x, y, origin="upper")

    def draw_end(self, height):
        self.text(height / 2 + 90, f"Thank you, {self.person}!", size=22)
        self.text(height / 2, textwrap.fill(tell(self.trials.result(self.person)), 60))
        self.text(BOTTOM / 2, "Esc ends the test; a click, or Enter, and it is the next person's turn", DIM)

    def tick(self):
        now = time.perf_counter()
        if self.signals:
            self.plt.close(self.figure)
        elif self.phase == "pause" and now >= self.until:
            self.next()
        elif self.phase == "pair" and self.trials.delay:
            left = 1 - (now - self.since) / self.trials.delay
            if left <= 0:
                self.answer("")
                return
            self.canvas.restore_region(self.background)
            self.bar.set_width(left * self.figure.bbox.width / 2)
            self.figure.draw_artist(self.bar)
            self.canvas.blit(self.figure.bbox)

    def next(self):
        self.trial = self.trials.next_trial(self.person)
        self.phase = "pair" if self.trial else "end"
        self.draw()
        self.canvas.flush_events()
        self.since = time.perf_counter()  # the pair is to be seen from now on

    def click(self, event):
        if self.phase != "pair":
            self.go_on()
            return
        boxes, length = self.boxes()
        hit = [side for side, (x, y) in boxes.items() if 0 <= event.x - x < length and 0 <= event.y - y < length]
        if hit:
            self.answer(*hit)

    def key(self, event):
        key = event.key or ""
        if key == "escape":
            self.plt.close(self.figure)
        elif self.phase == "pair" and key in ("left", "right"):
            self.answer(key)
        elif key == "enter":
            self.go_on()
        elif self.phase == "welcome" and (len(key) == 1 or key == "backspace"):
            self.name = self.name[:-1] if key == "backspace" else (self.name + key)[:40]
            self.draw()

    def go_on(self):
        """From the welcome to the first pair, if there is a name; from the end to the next person's welcome."""
        if self.phase == "welcome" and (name := clean_name(self.name)):
            self.person, self.trial = name, self.trials.next_trial(name) or len(self.trials)
            self.pause("")
        elif self.phase == "end":
            self.phase, self.name = "welcome", ""
            self.draw()

    def answer(self, side):
        seconds = time.perf_counter() - self.since
        if self.trials.delay and seconds > self.trials.delay:
            side = ""
        try:
            self.trials.answer(self.person, self.trial, side, seconds)
        except InputError as error:  # not raised here: the window's loop would swallow it
            self.error = error
            self.plt.close(self.figure)
            return
        self.pause("" if side else "no answer: the time was over")

    def pause(self, note):
        self.phase, self.note, self.until = "pause", note, time.perf_counter() + PAUSE
        self.draw()
