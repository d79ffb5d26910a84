"""What ends a training run from outside: SIGTERM, Ctrl-C, and Slurm's SIGUSR1."""

import contextlib
import os
import signal

from src import devices
from src.signals import handled


class Signals(contextlib.ExitStack):
    """SIGTERM and the first SIGINT (under Slurm also SIGUSR1) end the loop after the current iteration; of several workers,
    one's end that of all, after the same iteration. A second SIGINT ends the process at once.

    In the context, but before `listen`, each of them ends the process at once: there is nothing to save yet.
    """

    EVERY = 10  # iterations between two times that several workers ask each other

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.received = strategy, None

    def stop(self, step):
        """Whether to stop after iteration `step`."""
        if not devices.several_workers(self.strategy):
            return bool(self.received)
        if step % self.EVERY == 0 and int(devices.total(self.strategy, int(bool(self.received)))):
            self.received = self.received or signal.SIGTERM
            return True
        return False

    def listen(self):
        """To be called after the first iteration."""
        for number in self.numbers:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self.receive)

    def __enter__(self):
        numbers = [signal.SIGTERM, signal.SIGINT] + ([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])
        # Python's own handlers would wait for TensorFlow to compile.
        self.numbers = self.enter_context(handled(signal.SIG_DFL, *numbers))
        return self

    def receive(self, number, _):
        if self.received and number == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        self.received = signal.SIGTERM if number == signal.SIGUSR1 else signal.Signals(number)
