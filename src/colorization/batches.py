"""Many photographs at a time: threads decode, join and encode while the network computes."""

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain

import numpy as np
from tqdm import tqdm

from src.colorization import photograph, selection
from src.colorization.photograph import MAX_PIXELS
from src.data import images
from src.errors import InputError


def colorize(model, plan, batch_size, size, network_lightness=False):
    """Colorizes a Plan's jobs, and counts there what became of them; failures are named. selection.Stopped, if a signal
    ends it, comes when all threads are done.

    Only pictures of the network's size wait for their batch: originals are decoded a second time for the result, so that
    few are in memory, however many there are.
    """
    with closing(_Work(model, plan, batch_size, size, network_lightness)) as work:
        work.all()


class _Work:
    """The state of one run."""

    def __init__(self, model, plan, batch_size, size, network_lightness):
        self.model, self.plan, self.batch_size, self.size = model, plan, batch_size, size
        self.network_lightness, self.budget = network_lightness, Budget(MAX_PIXELS)
        self.preparing, self.finishing, self.waiting = deque(), deque(), {}  # (source, future); shape -> Prepared pictures
        self.bar = tqdm(total=len(plan.jobs), unit="image", disable=None)  # None: none when redirected
        self.pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    def all(self):
        for job in chain(self.plan.jobs, [None]):
            if job:
                future = self.pool.submit(photograph.prepare, *job, self.size, self.model.stride, self.budget)
                self.preparing.append((job[0], future))
            for prepared in self.settle(self.preparing, 2 * self.batch_size if job else 0):
                batch = self.waiting.setdefault(prepared.windows.shape, [])
                batch.append(prepared)
                # Many shapes: the fullest goes early, so that what waits stays bounded.
                if len(batch) == self.batch_size or sum(map(len, self.waiting.values())) == 4 * self.batch_size:
                    self.predict(self.waiting.pop(max(self.waiting, key=lambda shape: len(self.waiting[shape]))))
        for batch in self.waiting.values():
            self.predict(batch)
        self.collect(0)

    def settle(self, futures, limit):
        """Yields results, oldest first, until at most `limit` futures are left; counts and names failures."""
        while len(futures) > limit:
            source, future = futures[0]
            error = future.exception()  # waits; a signal that comes meanwhile leaves it to `close`
            futures.popleft()
            if isinstance(error, images.ImageError):
                self.plan.failure(source, error)
                self.bar.update()
            else:
                yield future.result()

    def predict(self, batch):
        luma = np.concatenate([prepared.windows for prepared in batch])[..., None]
        parts = [luma[i : i + self.batch_size] for i in range(0, len(luma), self.batch_size)]
        lab = np.concatenate([self.model.predict_lab(part) for part in parts])  # float32 (n,h,w,3)
        if not np.isfinite(lab).all():
            raise InputError("the network's output is not finite: its training went astray; take an earlier checkpoint")
        for prepared, one in zip(batch, np.split(lab, len(batch))):
            future = self.pool.submit(photograph.finish, prepared, one, self.network_lightness, self.budget)
            self.finishing.append((prepared.source, future))
        self.collect(2 * self.batch_size)

    def collect(self, limit):
        for left_out in self.settle(self.finishing, limit):
            self.plan.done += 1
            self.bar.update()
            if left_out:
                selection.say(left_out)

    def close(self):
        """Ends the threads; results that they were writing when a signal came still count."""
        self.pool.shutdown(cancel_futures=True)
        self.finishing = deque(each for each in self.finishing if not each[1].cancelled())
        self.collect(0)
        self.bar.close()


class Budget:
    """Pixels that may be decoded at one time, over all threads."""

    def __init__(self, pixels):
        self.free, self.changed = pixels, threading.Condition()

    @contextmanager
    def take(self, pixels):
        with self.changed:
            self.changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.free += pixels
                self.changed.notify_all()
