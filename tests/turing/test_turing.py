"""The Turing test's trials, answers on disk, score and report; people are simulated."""

import csv
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unicodedata
from argparse import Namespace
from collections import Counter
from pathlib import Path

import forks
import numpy as np
import pytest

from src import turing as session
from src.data import images
from src.errors import InputError
from src.turing import web
from src.turing.score import describe, summarize, tell
from src.turing.trials import Pair, Row, Trials, read_rows

ROOT = Path(__file__).parents[2]


class Photos:
    """A stand-in for a test set of 32x32 images: number 3 is unreadable, 4 and 5 have no color."""

    network, size = "cifar10", 32

    def __init__(self, count=20):
        self.images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.images[4:6] = self.images[4:6, ..., :1]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == 3:
            raise images.ImageError("photo 3 is broken")
        return self.images[index]

    def name(self, index):
        return f"photo {index}"


class Network:
    """A stand-in for the model: the negative, and what it was asked for."""

    size, config = 32, Namespace(network="cifar10", normalization="moving", color_contrast=1.0)

    def __init__(self):
        self.batches = []

    def colorize(self, batch):
        self.batches.append(len(batch))
        return 255 - batch


def make_trials(file, count=4, delay=0.0, seed=1, size=32):
    photos = np.random.default_rng(9).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Trials([Pair(f"photo {i}", photo, 255 - photo) for i, photo in enumerate(photos)], seed, delay, Path(file))


def take(trials, person, choose):
    """All of this person's trials; choose(side of the original) is the answer."""
    while trial := trials.next_trial(person):
        trials.answer(person, trial, choose(trials.order(person)[trial - 1][1]), 0.5)
    return trials.result(person)


def opposite(side):
    return {"left": "right", "right": "left"}[side]


# Drawing and colorizing


def test_trials_are_drawn_without_replacement_and_without_gray_or_broken_images():
    names, originals = session.draw(Photos(), 17, seed=5)
    assert sorted(names) == sorted(f"photo {i}" for i in range(20) if i not in (3, 4, 5))
    assert all(np.array_equal(image, Photos().images[int(name.split()[1])]) for name, image in zip(names, originals))
    assert session.draw(Photos(), 10, 5)[0] == session.draw(Photos(), 10, 5)[0] != session.draw(Photos(), 10, 6)[0]


@pytest.mark.parametrize(("count", "reason"), [(21, "only 20 images"), (18, "2 of them without color and 1 unreadable")])
def test_more_trials_than_images(count, reason):
    with pytest.raises(InputError, match=f"--test-size {count}: .*{reason}"):
        session.draw(Photos(), count, 5)


@pytest.mark.parametrize(("count", "batches"), [(10, [4, 4, 4]), (8, [4, 4]), (3, [3])])
def test_colorizing_in_full_batches(count, batches):
    network, originals = Network(), Photos(count).images
    assert np.array_equal(session.colorize(network, originals, 4), 255 - originals)
    assert network.batches == batches


# Order


def test_everybody_has_an_own_order_that_does_not_change(tmp_path):
    trials = make_trials(tmp_path / "trials.csv", count=40)
    orders = {person: [(p.name, s) for p, s in trials.order(person)] for person in ("anna", "ben")}
    assert orders["anna"] != orders["ben"]
    for order in orders.values():
        assert sorted(name for name, _ in order) == sorted(p.name for p in trials.pairs)
        assert Counter(side for _, side in order) == {"left": 20, "right": 20}
    again = make_trials(tmp_path / "trials.csv", count=40).order("anna")
    assert [(p.name, s) for p, s in again] == orders["anna"]
    other_seed = make_trials(tmp_path / "trials.csv", count=40, seed=2).order("anna")
    assert [(p.name, s) for p, s in other_seed] != orders["anna"]
    firsts = Counter(trials.order(f"person {i}")[0][1] for i in range(200))
    assert 70 < firsts["left"] < 130


def test_both_images_stand_where_the_order_says(tmp_path):
    trials = make_trials(tmp_path / "trials.csv")
    for number, (pair, side) in enumerate(trials.order("anna"), 1):
        left, right = trials.look("anna", number)
        original, colorized = (left, right) if side == "left" else (right, left)
        assert np.array_equal(original, pair.original)
        assert np.array_equal(colorized, pair.colorized)


# Score


def test_simulated_people_over_200_trials(tmp_path):
    trials = make_trials(tmp_path / "trials.csv", count=200, size=2)
    right, wrong = take(trials, "right", lambda side: side), take(trials, "wrong", opposite)
    left, waits = take(trials, "left", lambda side: "left"), take(trials, "waits", lambda side: "")
    assert right["rate_percent"] == right["answered_rate_percent"] == 0
    assert wrong["rate_percent"] == wrong["answered_rate_percent"] == 100
    assert left["rate_percent"] == 50 and left["rate_interval_percent"][0] < 50 < left["rate_interval_percent"][1]
    assert waits["unanswered"] == 200 and waits["rate_percent"] == 100  # the original's rule
    assert waits["answered_rate_percent"] is None is waits["median_seconds"]
    assert describe(waits).startswith("taken for real    - of 0 answered trials\nor unanswered     100.0% of all 200 trials\n")
    assert "none of the 200 pairs" in tell(waits)


def test_score_of_known_counts():
    """Clopper-Pearson 3/10: 6.67 to 65.25 (the textbook's); p = 2 * (1 + 10 + 45 + 120) / 1024."""
    rows = [Row("a", i, "x", "left", "left", 1.0, "correct") for i in range(5)]
    rows += [Row("b", i, "x", "left", "right", 4.0, "wrong") for i in range(2)]
    rows += [Row("b", 3, "x", "left", "", 2.0, "unanswered")] + rows[:2]
    score = summarize(rows)
    assert (score["trials"], score["people"], score["correct"], score["wrong"], score["unanswered"]) == (10, 2, 7, 2, 1)
    assert score["rate_percent"] == pytest.approx(30)
    assert score["rate_interval_percent"] == pytest.approx([6.674, 65.245], abs=1e-3)
    assert score["rate_p_value"] == pytest.approx(0.34375)
    assert score["answered_rate_percent"] == pytest.approx(100 * 2 / 9)
    assert score["answered_rate_p_value"] == pytest.approx(46 / 256)
    assert score["median_seconds"] == 1.0
    words = describe(score)
    assert words.index("22.2% of 9 answered trials") < words.index("30.0% of all 10 trials\n")
    assert "95% interval 6.7 to 65.2%; chance 50%, p = 0.3438" in words and "Unanswered: nothing was chosen" in words
    assert max(map(len, words.splitlines())) <= 80
    assert "In 2 of the 9 pairs that you answered (22%)" in tell(score) and "1 more you left unanswered" in tell(score)


# Answers on disk


def test_columns_and_continuation(tmp_path):
    file = tmp_path / "trials.csv"
    trials = make_trials(file)
    (_, side), row = trials.order("anna")[0], trials.answer("anna", 1, "left", 1.23456)
    with open(file, newline="") as lines:
        header, line = csv.reader(lines)
    assert header == ["person", "trial", "image", "side", "answer", "seconds", "result"]
    assert line == ["anna", "1", row.image, side, "left", "1.235", "correct" if side == "left" else "wrong"]
    again = make_trials(file)
    assert again.rows == [row] and again.next_trial("anna") == 2 and again.next_trial("ben") == 1
    with pytest.raises(ValueError, match="trial 1 is not the next"):
        again.answer("anna", 1, "right", 1.0)
    assert len(read_rows(file)) == 1


WIDE = [c for c in map(chr, range(sys.maxunicode)) if unicodedata.normalize("NFKC", c)[:1] in {*"=+-@"}]
NAMES = [
    "=1+1",
    "+1",
    "-1",
    "@sum(a1)",
    "'=1",
    "''=1",
    "'ann",
    'a"b',
    "a,b;=c",
    "<i>é</i>",
    "\u202e",
    "\t=1",
    " =1",
    "\u3000=1",
    "\u200b=1",
    "\ufeff=1",
    "\u2212" + "1",
    *(c + "1+1" for c in WIDE),
]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_a_formula_in_a_spreadsheet(tmp_path, name):
    file = tmp_path / "trials.csv"
    make_trials(file).answer(name, 1, "left", 1.0)
    with open(file, newline="", encoding="utf-8") as lines:
        cells = list(csv.reader(lines))[1]
    assert cells[0][0] == "'" or cells[0][0].isalpha()
    assert make_trials(file).rows[0].person == name


def test_a_line_break_in_an_image_name_makes_no_second_line(tmp_path):
    trials = make_trials(tmp_path / "trials.csv", count=1)
    trials.pairs[0] = trials.pairs[0]._replace(name="=a\n=b\r.jpg")
    trials.answer("anna", 1, "left", 1.0)
    assert (tmp_path / "trials.csv").read_bytes().count(b"\n") == 2
    assert read_rows(tmp_path / "trials.csv")[0].image == "=a =b .jpg"


@pytest.mark.parametrize("head", ["\r", "\t", "\n", "\r\t "])
def test_a_formula_behind_a_tab_or_a_line_break_is_text(tmp_path, head):
    trials = make_trials(tmp_path / "trials.csv", count=1)
    trials.pairs[0] = trials.pairs[0]._replace(name=f"{head}=1.jpg")
    trials.answer("anna", 1, "left", 1.0)
    with open(tmp_path / "trials.csv", newline="") as lines:
        assert list(csv.reader(lines))[1][2].startswith("'")


def test_a_line_that_a_kill_cut_off_is_dropped_and_others_kept(tmp_path):
    file = tmp_path / "trials.csv"
    trials = make_trials(file)
    first, second = trials.answer("anna", 1, "left", 1.0), trials.answer("anna", 2, "left", 1.0)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        kept = make_trials(file).rows
        assert kept == [first, second][: max(0, whole[:length].count(b"\n") - 1)]
        make_trials(file).answer("ben", 1, "right", 1.0)
        assert len(make_trials(file).rows) == len(kept) + 1


BAD_LINES = [
    "x",
    "a,1,b,left,left,1,wrong",
    "a,one,b,left,left,1,correct",
    "a,1,b,up,up,1,correct",
    '"a',
    "a,1,b,left,left,-1,correct",
    "a,1,b,left,left,nan,correct",
    "a,1,b,left,left,inf,correct",
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_spoiled_file_is_named_with_the_line(tmp_path, line):
    (tmp_path / "trials.csv").write_text(f"person,trial,image,side,answer,seconds,result\n{line}\n")
    with pytest.raises(InputError, match=r"trials\.csv, line [12]: "):
        read_rows(tmp_path / "trials.csv")


def test_sigkill_loses_no_answer(tmp_path):
    code = (
        "import sys; sys.path.append('tests/turing'); from test_turing import make_trials\n"
        "trials = make_trials(sys.argv[1], count=9_000, size=2)\n"
        "for i in range(1, 9_000): trials.answer('anna', i, 'left', 1.0); print(i, flush=True)"
    )
    child = forks.Program(["-c", code, tmp_path / "trials.csv"], stdout=subprocess.PIPE)
    for _ in range(20):
        child.stdout.readline()
    child.kill()
    acknowledged = 20 + len(child.stdout.read().split())
    child.wait()
    assert acknowledged <= len(make_trials(tmp_path / "trials.csv").rows) <= acknowledged + 1


def test_a_full_disk_is_said_and_leaves_no_half_line(tmp_path):
    import resource

    trials = make_trials(tmp_path / "trials.csv")
    trials.answer("anna", 1, "left", 1.0)
    before = (tmp_path / "trials.csv").read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))  # the file system takes nine bytes more
    try:
        with pytest.raises(InputError, match="cannot be saved"):
            trials.answer("anna", 2, "left", 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "trials.csv").read_bytes() == before
    assert trials.answer("anna", 2, "left", 1.0).trial == 2


# The whole mode


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Options, with stand-ins for the data, the network and the person at the page; no TensorFlow."""
    (tmp_path / "demo").mkdir()
    asked = []

    class Page:
        def __init__(self, port):
            pass

        def ask(self, trials, login, signals):
            asked.append(trials)
            trials.answer("anna", trials.next_trial("anna"), "left", 1.0)

    monkeypatch.setattr(session, "open_dataset", lambda *_, **__: Photos(getattr(options, "photos", 20)))
    monkeypatch.setattr(web, "Server", Page)
    loaded = Network(), Namespace(prefix=Path("CGAN_demo-7"), step=7, record={})
    monkeypatch.setitem(sys.modules, "src.checkpoints", Namespace(load_for_inference=lambda *_: loaded))
    options = Namespace(
        seed=3, seed_drawn=False, dataset="demo", dataset_path=tmp_path, checkpoints_path=tmp_path / "demo", batch_size=4,
        test_size=10, test_delay=0.0, ui="web", port=0, summary=False, download=False, test_share=0.05, asked=asked,
    )  # fmt: skip
    return options


def test_a_run_reports_and_the_next_one_goes_on(house, capsys):
    folder = house.checkpoints_path / "turing"
    assert session.run(house) == 0
    report = json.loads((folder / "turing.json").read_text())
    assert report["test"]["seed"] == 3 and report["summary"]["trials"] == report["people"]["anna"]["trials"] == 1
    assert images.read_rgb(folder / "turing.png").shape[2] == 3
    assert "0 unanswered, by 1 person" in capsys.readouterr().out
    del report["test"]["color_contrast"]  # as earlier versions wrote it
    (folder / "turing.json").write_text(json.dumps(report))
    house.seed, house.seed_drawn = 99, True  # no seed asked for: the test goes on with its own
    session.run(house)
    assert [row.trial for row in house.asked[1].rows] == [1, 2] and house.asked[1].seed == 3
    assert len(read_rows(folder / "trials.csv")) == 2


@pytest.mark.parametrize("change", [{"seed": 4}, {"test_size": 9}, {"test_delay": 2.0}, {"dataset": "cifar10"}, {"photos": 30}])
def test_answers_to_another_test_are_put_aside_not_mixed(house, change, capsys):
    folder = house.checkpoints_path / "turing"
    session.run(house)
    vars(house).update(change)
    session.run(house)
    aside, test = list(folder.glob("trials-*.csv")), json.loads((folder / "turing.json").read_text())["test"]
    assert test.items() >= {key: value for key, value in change.items() if key != "photos"}.items()
    assert len(aside) == 1 and len(read_rows(aside[0])) == 1
    assert len(read_rows(folder / "trials.csv")) == 1
    assert "held answers to another test" in capsys.readouterr().out


def test_a_second_test_in_the_folder_is_refused(house):
    lock = session._only_one(house.checkpoints_path / "turing")
    with pytest.raises(InputError, match="another Turing test is running"):
        session.run(house)
    lock.close()
    assert session.run(house) == 0


def test_no_window_without_a_display(house):
    house.ui = "window"
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    code = "import sys; from src.turing.window import available; sys.exit(available())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment).returncode == 0


def test_summary_needs_the_file_alone(tmp_path):
    take(make_trials(tmp_path / "trials.csv"), "anna", opposite)
    folder = tmp_path / "checkpoints" / "demo" / "turing"
    folder.mkdir(parents=True)
    (tmp_path / "trials.csv").rename(folder / "trials.csv")
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None\nfrom src import turing\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from main import main; sys.exit(main(sys.argv[1:], mode='turing'))"
    )
    words = ["--dataset", "demo", "--checkpoints-path", tmp_path / "checkpoints", "--summary", "True"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("taken for real    100.0% of 4 answered trials\n")
    assert "95% interval 39.8 to 100.0%; chance 50%, p = 0.1250" in done.stdout
    assert json.loads((folder / "turing.json").read_text())["summary"]["wrong"] == 4
    assert (folder / "turing.png").stat().st_size > 1000


def test_summary_without_answers(house):
    house.summary = True
    with pytest.raises(InputError, match=r"trials\.csv: does not exist"):
        session.run(house)


ALONE = """
import os, sys
sys.path.append("tests/turing")
from argparse import Namespace
from pathlib import Path
from test_turing import Network, Photos
from src import checkpoints
from src import turing as session
loaded = Network(), Namespace(prefix=Path("CGAN_demo-7"), step=7, record={})
checkpoints.load_for_inference = lambda *_: loaded
session.open_dataset = lambda *_, **__: Photos()
folder = Path(sys.argv[1])
sys.exit(session.run(Namespace(seed=3, seed_drawn=False, dataset="demo", dataset_path=folder, checkpoints_path=folder,
                               batch_size=4, test_size=4, test_delay=0.0, ui=sys.argv[2], port=0, summary=False,
                               download=False, test_share=0.05)))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_ends_the_page_and_writes_the_report(tmp_path, number, code):
    child = forks.Program(["-c", ALONE, tmp_path, "web"], stdout=subprocess.PIPE)
    try:
        while "http" not in (line := child.stdout.readline()):
            assert line
        page = http.client.HTTPConnection("127.0.0.1", int(line.rstrip("/\n").rpartition(":")[2]), timeout=20)
        for call, words in (("show", {}), ("answer", {"answer": "left", "seconds": 0})):
            words = json.dumps({"name": "anna", "trial": 1, **words})
            page.request("POST", f"/api/{call}", words, {"Content-Type": "application/json"})
            assert page.getresponse().read()
        child.send_signal(number)
        child.send_signal(number)  # an impatient person's second one does not stop the report
        assert "of 1 answered trials" in child.communicate(timeout=20)[0] and child.returncode == code
    finally:
        child.kill()
    assert json.loads((tmp_path / "turing" / "turing.json").read_text())["summary"]["answered"] == 1
    assert {file.name for file in (tmp_path / "turing").iterdir()} == {".lock", "trials.csv", "turing.json", "turing.png"}


@pytest.mark.slow
def test_a_command_line_from_checkpoint_to_report(tiny_checkpoint, cli, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen = []

    def person():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                for call, words in (("next", {}), ("pair", {"trial": 1}), ("show", {"trial": 1}),
                                    ("answer", {"trial": 1, "answer": "left", "seconds": 0})):  # fmt: skip
                    page = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                    words = json.dumps({"name": "anna", **words})
                    page.request("POST", f"/api/{call}", words, {"Content-Type": "application/json"})
                    reply = page.getresponse()
                    seen.append((call, reply.status, len(reply.read())))
                break
            except OSError:
                time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C

    threading.Thread(target=person, daemon=True).start()
    done = cli("test-turing.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--test-size", "5",
               "--ui", "web", "--port", port, "--seed", "1")  # fmt: skip
    assert done.code == 0, done.stderr
    assert f"http://127.0.0.1:{port}/" in done.stdout and f"ssh -L {port}:127.0.0.1:{port}" in done.stdout
    assert [status for _, status, _ in seen] == [200] * 4 and seen[1][2] == 2 * 32 * 32 * 3
    assert "of 1 answered trials" in done.stdout
    done = cli("test-turing.py", "--dataset", "demo", "--checkpoints-path", tmp_path, "--test-size", "5", "--ui", "web")
    assert done.code == 2 and "no checkpoint" in done.stderr
