"""The datasets' networks in numbers, and the one value that tells how to build a model's networks."""

import dataclasses
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
        decoder=(512, 256, 128, 64), dropouts=2,
        discriminators={"deep": PATCH}),
    "places365": Architecture(
        size=256,
        encoder=((64, 1), (64, 2), (128, 2), (256, 2), (512, 2), (512, 2), (512, 2), (512, 2)),
        decoder=(512, 512, 512, 256, 128, 64, 64), dropouts=3,
        discriminators={"deep": ((64, 2), (128, 2), (256, 2), (512, 2), (512, 2), (512, 2), (512, 1)),
                        "patch": PATCH}),  # a later version of the original had it
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

    def __post_init__(self):
        architecture = self.architecture
        if not self.image_size:
            object.__setattr__(self, "image_size", architecture.size)
        if self.image_size % architecture.stride:
            raise InputError(f"--image-size {self.image_size}: the networks for {self.network} take multiples of "
                             f"{architecture.stride} pixels")

    @property
    def architecture(self):
        return ARCHITECTURES[self.network]

    @classmethod
    def from_record(cls, record):
        """The config in a checkpoint's record, a dict. ValueError, TypeError or LookupError if it describes none of ours."""
        values = {field.name: record[field.name] for field in dataclasses.fields(cls) if field.name in record}
        architecture = ARCHITECTURES[values["network"]]
        counts = [values["kernel_size"], values["filters"], values.get("image_size", architecture.size)]
        if not (all(type(count) is int and 0 < count < 2 ** 20 for count in counts) and counts[2] % architecture.stride == 0
                and values.get("color_space", "lab") in ("lab", "rgb") and values["gray_range"] in (1, 255)
                and values["normalization"] in ("moving", "batch")
                and values["discriminator"] in (None, *architecture.discriminators)):
            raise ValueError("it does not describe networks of ours")
        return cls(**values)
