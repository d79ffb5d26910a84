"""The datasets' networks in numbers, and the one value that tells how to build a model's networks."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from src.errors import InputError


class Architecture(NamedTuple):
    """One dataset's networks. Units are (filters, stride), for 64 filters in the first convolution."""

    size: int  # pixels, of the images it is trained on
    encoder: tuple
    decoder: tuple  # filters only: the stride is always 2
    dropouts: int  # of the decoder's first units
    discriminators: dict  # by name; "deep" is the one to train

    @property
    def stride(self):
        """Sides of the generator's input must be multiples of this."""
        return 2 ** sum(stride == 2 for _, stride in self.encoder)


PATCH = ((64, 2), (128, 2), (256, 2), (512, 1))  # sees 70x70 pixels (Isola et al. 2017)
ARCHITECTURES = {
    "cifar10": Architecture(
        size=32,
        encoder=((64, 1), (128, 2), (256, 2), (512, 2), (512, 2)),
        decoder=(512, 256, 128, 64),
        dropouts=2,
        discriminators={"deep": PATCH},
    ),
    "places365": Architecture(
        size=256,
        encoder=((64, 1), (64, 2), (128, 2), (256, 2), (512, 2), (512, 2), (512, 2), (512, 2)),
        decoder=(512, 512, 512, 256, 128, 64, 64),
        dropouts=3,
        discriminators={"deep": ((64, 2), (128, 2), (256, 2), (512, 2), (512, 2), (512, 2), (512, 1)), "patch": PATCH},
    ),  # a later version of the original had it
}


def suited(size):
    """The name of the largest networks that take images of `size` pixels, else of the smallest."""
    return next((name for name in reversed(ARCHITECTURES) if size % ARCHITECTURES[name].stride == 0), "cifar10")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """What builds a model's networks, and what a checkpoint records of them. InputError for values that do not fit together."""

    network: str  # a key of ARCHITECTURES
    color_space: str = "lab"  # of the generator's output: "lab" or "rgb"
    gray_range: int = 1  # the networks see luma in 0..gray_range: 1, or 255 as in the original
    kernel_size: int = 4  # pixels
    filters: int = 64  # of the first convolution
    image_size: int = 0  # pixels, of the images that it is trained on; 0: the architecture's
    discriminator: str | None = "deep"  # a key of the architecture's discriminators; None: there is none to evaluate with
    normalization: str = "moving"  # statistics at inference; "batch": colors depend on the neighbours in the batch
    color_contrast: float = 1.0  # at inference a and b are spread by it about their mean in each image; up to 10

    def __post_init__(self):
        if not self._bounded(self.color_contrast):
            raise InputError(f"--color-contrast {self.color_contrast}: takes numbers above 0, up to 10")
        architecture = self.architecture
        if not self.image_size:
            object.__setattr__(self, "image_size", architecture.size)
        if self.image_size % architecture.stride:
            raise InputError(
                f"--image-size {self.image_size}: the networks for {self.network} take multiples of "
                f"{architecture.stride} pixels"
            )

    @staticmethod
    def _bounded(contrast):
        return type(contrast) in (int, float) and 0 < contrast <= 10

    @property
    def architecture(self):
        return ARCHITECTURES[self.network]

    def layers(self):
        """Yields (variables, outputs) of each convolution of the networks to train: of the generator, then of the
        discriminator. Outputs are of one image."""

        def layer(before, width, kernel_size=self.kernel_size):
            return kernel_size**2 * before * width, side * side * width

        def scaled(width):
            return width * self.filters // 64 or 1

        side, channels = self.image_size, [1]
        for width, stride in self.architecture.encoder:
            side = -(-side // stride)
            yield layer(channels[-1], scaled(width))
            channels.append(scaled(width))
        before = channels.pop()
        for width in self.architecture.decoder:
            side *= 2
            yield layer(before, scaled(width))
            before = scaled(width) + channels.pop()
        yield layer(before, 3, 1)
        side, before = self.image_size, 4
        for width, stride in self.architecture.discriminators.get(self.discriminator, ()):
            side = -(-side // stride)
            yield layer(before, scaled(width))
            before = scaled(width)

    def check_memory(self, batch_size, training, on_gpu):
        """InputError if the machine's memory is certainly too small, told before anything is allocated.

        Counted are the weights, in training with their gradients and Adam's two slots, the images, and what the convolutions
        return: training keeps all of it.
        """
        variables, outputs = zip(*self.layers())
        weights = 4 * sum(variables) * (4 if training else 1)
        images = 3 * batch_size * self.image_size**2
        # A GPU has memory of its own; 16-bit arithmetic takes half.
        maps = 0 if on_gpu else 2 * batch_size * (sum(outputs) if training else max(outputs))
        if weights + images + maps > (there := _memory()):
            raise InputError(
                f"--filters {self.filters}, --kernel-size {self.kernel_size}, --image-size {self.image_size} and "
                f"--batch-size {batch_size} need at least {(weights + images + maps) // 10**9:,} GB of memory, "
                f"and there are {there // 10**9:,}: take smaller ones"
            )

    @classmethod
    def from_record(cls, record):
        """The config in a checkpoint's record, a dict. ValueError, TypeError or LookupError if it describes none of ours."""
        values = {field.name: record[field.name] for field in dataclasses.fields(cls) if field.name in record}
        architecture = ARCHITECTURES[values["network"]]
        counts = [values["kernel_size"], values["filters"], values.get("image_size", architecture.size)]
        if not (
            all(type(count) is int and 0 < count < 2**20 for count in counts)
            and counts[2] % architecture.stride == 0
            and values.get("color_space", "lab") in ("lab", "rgb")
            and values["gray_range"] in (1, 255)
            and values["normalization"] in ("moving", "batch")
            and cls._bounded(values.get("color_contrast", 1.0))
            and values["discriminator"] in (None, *architecture.discriminators)
        ):
            raise ValueError("it does not describe networks of ours")
        return cls(**values)


def _memory():
    """The bytes of memory that this process may use: the machine's, or its container's."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there
