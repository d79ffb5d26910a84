"""The Turing test's window: a pair, a click or an arrow key, the next pair."""

import time

import numpy as np

from src.errors import InputError

PAUSE = 0.5  # seconds between two pairs: they are told apart, and a double click does not answer twice
TOP, BOTTOM, GAP = 110, 70, 40  # pixels around and between the images
DARK, LIGHT, DIM = "#303030", "#f0f0f0", "#a0a0a0"  # gray surroundings: they favor no color


def available() -> bool:
    """Whether matplotlib finds a display and a toolkit."""
    import matplotlib.pyplot as plt

    figure = plt.figure()
    try:
        return figure.canvas.required_interactive_framework is not None
    finally:
        plt.close(figure)


def ask(trials, person: str):
    """Ask the person all remaining trials; returns when the window is closed. InputError if an answer is not saved."""
    if not trials.next_trial(person):
        print(f"{person} has answered all {len(trials)} trials; another --seed draws others")
        return
    _Window(trials, person).open()


class _Window:
    """phase: welcome -> (pause -> pair)* -> end"""

    def __init__(self, trials, person):
        import matplotlib.pyplot as plt

        self.plt, self.trials, self.person = plt, trials, person
        self.phase, self.note, self.error, self.until = "welcome", "", None, 0.0
        self.trial = trials.next_trial(person)
        scale = max(1, 512 // trials.size)  # 32 -> 16, 256 -> 2: comfortable, and it fits most screens
        width, height = 2 * scale * trials.size + 3 * GAP, scale * trials.size + TOP + BOTTOM
        with plt.rc_context({"toolbar": "None"}):
            self.figure = plt.figure("Visual Turing test", dpi=100, facecolor=DARK)
        self.canvas = self.figure.canvas
        self.figure.set_size_inches(max(width, 720) / 100, height / 100)
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
        if self.error:
            raise self.error

    def boxes(self):
        """Where the images stand: side -> (x, y) of the lower left corner, and how often a pixel is repeated."""
        width, height, size = *map(int, self.figure.bbox.size), self.trials.size
        scale = max(1, min((width - 3 * GAP) // (2 * size), (height - TOP - BOTTOM) // size))
        y = BOTTOM + (height - TOP - BOTTOM - scale * size) // 2
        return {"left": (width // 2 - GAP // 2 - scale * size, y), "right": (width // 2 + GAP // 2, y)}, scale

    def draw(self, event=None):
        width, height = self.figure.bbox.size
        self.figure.clear()
        boxes, scale = self.boxes()

        def text(y, words, color=LIGHT, size=15):
            self.figure.text(0.5, y / height, words, color=color, size=size, ha="center", va="center")

        limit = f"You have {self.trials.delay:g} seconds for each pair.\n" if self.trials.delay else ""
        if self.phase == "welcome":
            text(height / 2 + 70, "Which one is the real photograph?", size=22)
            text(height / 2 - 30, "One of two images was colorized by a network. Click on the one that you\n"
                 f"take for real, or press the left or right arrow key.\n{limit}Esc ends the test.")  # fmt: skip
            text(BOTTOM / 2, "click, or press any key, to begin", DIM)
        elif self.phase == "end":
            text(height / 2 + 30, "Thank you!", size=22)
            score = self.trials.result(self.person)
            low, high = score["rate_interval_percent"]
            late = f"{score['unanswered']} of them you left unanswered.\n" if score["unanswered"] else ""
            text(height / 2 - 40, f"In {score['wrong'] + score['unanswered']} of {score['trials']} pairs "
                 f"({score['rate_percent']:.0f}%) you did not find the real image;\nthe 95% interval is {low:.0f}% to "
                 f"{high:.0f}%.\n{late}Guessing would give 50%.")  # fmt: skip
            text(BOTTOM / 2, "click, or press any key, to close", DIM)
        else:
            text(height - 35, f"{self.trial} of {len(self.trials)}")
            text(BOTTOM / 2, "Which one is real?   ←  or  →" if self.phase == "pair" else self.note, DIM)
        if self.phase == "pair":
            for (x, y), image in zip(boxes.values(), self.trials.look(self.person, self.trial), strict=True):
                self.figure.figimage(np.kron(image, np.ones((scale, scale, 1), np.uint8)), x, y, origin="upper")
        self.bar = self.plt.Rectangle((width / 4, height - 75), width / 2, 8, color=LIGHT, transform=None)
        self.bar.set_animated(True)  # drawn by tick alone, over the rest
        self.figure.add_artist(self.bar)
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def tick(self):
        now = time.perf_counter()
        if self.phase == "pause" and now >= self.until:
            self.trial = self.trials.next_trial(self.person)
            self.phase = "pair" if self.trial else "end"
            self.draw()
            self.canvas.flush_events()
            self.since = time.perf_counter()  # the pair is to be seen from now on
        elif self.phase == "pair" and self.trials.delay:
            left = 1 - (now - self.since) / self.trials.delay
            if left <= 0:
                self.answer("")
                return
            self.canvas.restore_region(self.background)
            self.bar.set_width(left * self.figure.bbox.width / 2)
            self.figure.draw_artist(self.bar)
            self.canvas.blit(self.figure.bbox)

    def click(self, event):
        boxes, scale = self.boxes()
        length = scale * self.trials.size
        for side, (x, y) in boxes.items():
            if self.phase != "pair" or (0 <= event.x - x < length and 0 <= event.y - y < length):
                self.act(side)
                return

    def key(self, event):
        if event.key == "escape":
            self.plt.close(self.figure)
        elif self.phase != "pair" or event.key in ("left", "right"):
            self.act(event.key)

    def act(self, side):
        if self.phase == "pair":
            self.answer(side)
        elif self.phase == "welcome":
            self.pause("")
        elif self.phase == "end":
            self.plt.close(self.figure)

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
