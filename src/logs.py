"""A run's logs: log_train.dat and log_test.dat, TensorBoard's files beside them, and the learning curves drawn from them."""

import contextlib
from pathlib import Path

import numpy as np

from src import files

# The original's columns, and what the losses are called here.
COLUMNS = {"lossD": "dis_loss", "lossD_fake": "dis_loss_fake", "lossD_real": "dis_loss_real", "lossG": "gen_loss",
           "lossG_l1": "gen_loss_l1", "lossG_gan": "gen_loss_gan", "acc": "accuracy"}
HEADER = f"# epoch step {' '.join(COLUMNS)}"


class Log:
    """Writes the scalars and pictures of one split, "train" or "test", of a run that goes on behind `step`."""

    def __init__(self, folder, split, step):
        from src.backend import tf  # here, so that reading and drawing need none

        self.path, self.split, self.tf = Path(folder) / f"log_{split}.dat", split, tf
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if not line.startswith("#") and _step(line) <= step]  # what follows is redone
        with files.atomic_write(self.path) as part:
            part.write_text("\n".join([HEADER, *kept, ""]))
        with self._written():
            self.writer = tf.summary.create_file_writer(str(Path(folder) / "tensorboard" / split))

    def scalars(self, epoch, step, values):
        """Appends a line: values by the names of losses.py, and accuracy in percent."""
        with open(self.path, "a") as file:
            file.write(f"{epoch} {step} {' '.join(f'{values[name]:.6g}' for name in COLUMNS.values())}\n")
        with self._written(), self.writer.as_default(step):  # which flushes
            for name, value in values.items():
                self.tf.summary.scalar(name, value)

    def picture(self, step, pixels):
        """Adds a picture, uint8 (H, W, 3), to TensorBoard."""
        with self._written(), self.writer.as_default(step):
            self.tf.summary.image("gray | original | colorized", pixels[None])

    @contextlib.contextmanager
    def _written(self):
        """Makes TensorFlow's errors in the block, where it writes for TensorBoard, OSErrors."""
        try:
            yield
        except self.tf.errors.OpError as error:
            raise OSError(None, str(error).split("; ")[-1].split("\n")[0], str(self.path.parent / "tensorboard")) from error


def _step(line):
    try:
        return int(line.split()[1])
    except (IndexError, ValueError):
        return float("inf")  # a line cut short by a crash


def read(folder, split):
    """Returns a dict of column name -> float array of a split's log; empty arrays if there is none."""
    path = Path(folder) / f"log_{split}.dat"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split() for line in lines if not line.startswith("#")]
    rows = [row for row in rows if len(row) == 2 + len(COLUMNS)]
    table = np.array(rows, float).reshape(-1, 2 + len(COLUMNS))
    return dict(zip(["epoch", "step", *COLUMNS], table.T))


def draw(folder, window, path):
    """Draws the learning curves of a run's logs, training smoothed over `window` lines, to a PNG or SVG; needs no display."""
    from matplotlib.figure import Figure  # not pyplot: that wants a display

    train, test = read(folder, "train"), read(folder, "test")
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = {"Discriminator's loss": ["lossD_real", "lossD_fake"], "Generator's adversarial loss": ["lossG_gan"],
              "Generator's L1 loss, weighted": ["lossG_l1"], "Accuracy, %": ["acc"]}
    for axes, (title, columns) in zip(figure.subplots(1, len(panels)), panels.items()):
        for i, column in enumerate(columns):
            label = {"lossD_real": "real, ", "lossD_fake": "fake, "}.get(column, "")
            width = max(1, min(window, len(train["step"]) // 4))  # a short run's curve shall still be one
            if len(train["step"]):
                smooth = np.convolve(train[column], np.ones(width) / width, "valid")
                axes.plot(train["step"][width - 1:], smooth, color=f"C{2 * i}", label=f"{label}training")
            if len(test["step"]):
                axes.plot(test["step"], test[column], "o-", color=f"C{2 * i + 1}", markersize=3, label=f"{label}test")
        axes.set(title=title, xlabel="iteration")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize="small")
    with files.atomic_write(path) as part:
        figure.savefig(part, format=Path(path).suffix[1:], dpi=100)
