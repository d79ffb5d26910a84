"""The networks: a U-Net generator and a conditional discriminator, and what they are made of."""

from src.networks.architectures import ARCHITECTURES, NetworkConfig, suited
from src.networks.discriminator import Discriminator
from src.networks.generator import Generator, dropout
from src.networks.normalization import batch_statistics, moving_statistics
