"""Programs in processes of their own, for what only a process shows: signals, exit codes, streams, limits.

They are forked from a server that has imported TensorFlow and used nothing of it: no thread runs there yet, and each program is
spared the seconds of the import.
"""

import atexit
import ctypes
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import small_demo

ROOT = Path(__file__).parent.parent
PATH = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
ADOPT_ORPHANS = 36  # prctl's PR_SET_CHILD_SUBREAPER
THREADS = "TF_NUM_INTRAOP_THREADS"


def unbound():
    """The environment with as many threads as TensorFlow likes, for programs that have to choose them (--deterministic)."""
    return {name: value for name, value in os.environ.items() if name != THREADS}


class Server:
    """Answers a program's arguments, environment and streams, sent together, with the number of the process that it has become.

    That is a child of ours, not of the server: the process in between ends at once, and we adopt its orphan.
    """

    def __init__(self):
        ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            name: value for name, value in os.environ.items() if name not in ("TF_CPP_MIN_LOG_LEVEL", "MPLBACKEND")
        }  # they are for each program to choose
        environment |= {**PATH, "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}  # no driver survives a fork
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import forks; forks.serve({theirs.fileno()})"],
            env=environment,
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.single, self.lock = self.link.recv(100) == b"1", threading.Lock()

    def start(self, words, environment, streams):
        """Returns the new process's number."""
        message = json.dumps([words, environment]).encode()
        with self.lock:
            socket.send_fds(self.link, [message], streams)
            return int(self.link.recv(100))

    def close(self):
        self.link.close()
        self.process.wait()


STARTING = threading.Lock()


def server():
    """The one server, started when it is first asked for."""
    with STARTING:
        return _started()


@functools.cache
def _started():
    found = Server()
    atexit.register(found.close)
    return found


class Program(subprocess.Popen):
    """subprocess.Popen([sys.executable, *words]), run in ROOT with text streams and the small demo dataset.

    words: "train.py" or "-c" and a program's text, and its arguments. fork: False for a process of its own from the start on.
    """

    def __init__(self, words, fork=True, env=None, text=True, **more):
        self.fork, words = fork and server().single, [*map(str, words)]  # not where TensorFlow's import starts threads
        if not self.fork:
            words = ["-c", "import sys, forks; forks.run(sys.argv[1:])", *words]
        super().__init__(
            [sys.executable, *words], cwd=ROOT, text=text, env={**(os.environ if env is None else env), **PATH}, **more
        )

    def _execute_child(self, args, *more):
        """Popen's own forks and executes; this one asks the server. It is no public method, but has long been the same."""
        if not self.fork:
            return super()._execute_child(args, *more)
        streams = [more[at] if more[at] >= 0 else place for place, at in enumerate((9, 12, 14))]
        self.pid, self._child_created = server().start(args[1:], dict(more[5]), streams), True
        self._close_pipe_fds(*more[9:15])


def run(words):
    """What `python *words` does."""
    small_demo.install()
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def serve(number):
    """The server's life."""

    import src.colorization
    import src.evaluation
    import src.training
    import src.turing  # noqa: F401

    link = socket.socket(fileno=number)
    link.send(b"%d" % len(os.listdir("/proc/self/task")))
    while True:
        message, streams, *_ = socket.recv_fds(link, 1 << 20, 3)
        if not message:
            return
        ours, theirs = os.pipe()
        between = os.fork()
        if not between:
            os.close(ours)
            link.close()
            child = os.fork()
            if child:
                os.write(theirs, b"%d" % child)
                os._exit(0)
            os.close(theirs)
            become(*json.loads(message), streams)
        for each in (theirs, *streams):
            os.close(each)
        os.waitpid(between, 0)  # from now on it is an orphan
        link.send(os.read(ours, 100))
        os.close(ours)


def become(words, environment, streams):
    """Turns this process into one that runs `words`."""
    code = 1
    try:
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = (open(i, "w" if i else "r", buffering=1, closefd=False) for i in range(3))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        importlib.reload(sys.modules["src.backend"])  # which sets how much TensorFlow says
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run(words)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
