"""The datasets by name. A new one is a class in a file of its own and a line in DATASETS."""

from src.data.cifar10 import Cifar10
from src.data.demo import Demo
from src.data.folder import Folder
from src.data.places365 import Places365
from src.errors import InputError

DATASETS = {"cifar10": Cifar10, "places365": Places365, "folder": Folder, "demo": Demo}


def open_dataset(name, folder, split, download=False, size=None, test_share=0.05):
    """Opens one split, "train" or "test", of a dataset of DATASETS, its images scaled and cropped to `size` pixels (default:
    the dataset's own). test_share: of `Folder`. InputError if it is missing, empty or wrong."""
    more = {"test_share": test_share} if DATASETS[name] is Folder else {}
    try:
        return DATASETS[name](folder, split, download, size, **more)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror or error}") from error
