"""Where a training run is."""


class State:
    """A run's place, counted in iterations and in images, and the newest losses.

    Args:
        step: iterations done; images_seen: by them, whatever their batch sizes were.
        epochs: passes over `images_an_epoch` images that the run takes.

    A batch may straddle two epochs: it belongs to the one that it begins in, and ends that one.
    """

    def __init__(self, step, images_seen, batch_size, epochs, images_an_epoch):
        self.step, self.images_seen, self.batch_size = step, images_seen, batch_size
        self.epochs, self.images_an_epoch = epochs, images_an_epoch
        self.total = step + max(0, -((images_seen - epochs * images_an_epoch) // batch_size))  # iterations, rounded up
        self.epoch_ends = False
        self.unfinished = []  # names of listeners that were broken off: the run that goes on from here does their work first
        self._losses, self._values = None, None

    @property
    def done(self):
        return self.step >= self.total

    @property
    def epoch(self):
        """Of the newest iteration, from 1."""
        return max(0, self.images_seen - self.batch_size) // self.images_an_epoch + 1

    def advance(self, step, losses):
        """One more iteration, as Model.train yields it."""
        self.step, self._losses, self._values = step, losses, None
        self.images_seen += self.batch_size
        self.epoch_ends = self.images_seen >= self.epoch * self.images_an_epoch

    def break_off(self, name):
        """A listener did not finish; of several workers, which stop together a little later, perhaps for the second time."""
        if name not in self.unfinished:
            self.unfinished.append(name)

    def due(self, interval):
        """Whether what is done every so many iterations, and after the last, is to be done now."""
        return self.done or self.step % interval == 0

    def values(self):
        """The newest losses as floats. They are read from the device here, once: that waits for the iteration."""
        if self._values is None:
            self._values = {name: float(value) for name, value in self._losses.items()}
        return self._values
