"""Where image sets come from: `SOURCES` has one entry per set, `find` looks one up.

A source reads ``(train, test, classes)``, of which train and test are pairs of images uint8 (N, C, H, W) and labels
int64 (N,). A new set needs one function that reads it and one entry.
"""

import contextlib
import functools
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from rqlib.core import files, torchvision_guard
from rqlib.core.vocabulary import did_you_mean
from rqlib.data import imagefolder, imagenet

_DIGITS = tuple("0123456789")
_PATIENCE_SECONDS = 20.0  # how long a download waits for an answer of the server
_KNOWN_FOLDERS = {"cifar10-jpeg": ("CIFAR-10 (JPEG)", True), "mnist10k": ("MNIST-10k", False)}  # title, horizontal flip


@dataclass(frozen=True)
class Source:
    """How a set is read, and what is known about its images.

    Attributes:
        read: folder of image sets -> (train, test, classes).
        horizontal_flip: whether a mirrored image still belongs to its class.
        channels: number of channels that gray images are repeated to; None keeps them as they are.
        mean_std: mean and standard deviation of each channel; None if they are measured on the images.
    """

    title: str
    read: Callable[[Path], tuple]
    horizontal_flip: bool
    channels: int | None = None
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def find(name: str) -> Source:
    """The source of the image set ``name``.

    Raises:
        ValueError: unknown name.
    """
    kind, _, path = name.partition(":")
    if kind == "imagefolder" and path:
        stem = Path(path).name.removesuffix(".zip")
        title, flip = _KNOWN_FOLDERS.get(stem, (stem, True))
        return Source(title, lambda root: imagefolder.read(find_folder(path, root)), flip)
    if name not in SOURCES:
        raise ValueError(did_you_mean("dataset", name, [*SOURCES, "imagefolder:PATH"]))
    return SOURCES[name]


def find_folder(path: str, root: Path) -> Path:
    """The full path of an image folder; a relative one is searched in ``root``, the project and the working folder.

    Raises:
        FileNotFoundError: the folder is in none of them.
    """
    candidates = [(base / Path(path).expanduser()).resolve() for base in (root, files.project_root(), Path.cwd())]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = ", ".join(dict.fromkeys(map(str, candidates)))
    raise FileNotFoundError(
        f"expected a folder or a .zip of images, found none of: {looked}; correct the path or RQLIB_DATA"
    )


def _digits(root: Path) -> tuple:
    """Scikit-learn's 1,797 digits of 8x8 pixels, resized to 32x32; one fifth of every class is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    small = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    images = F.interpolate(small, size=(32, 32), mode="bilinear").round().byte()
    labels = torch.from_numpy(digits.target).long()
    parts = train_test_split(torch.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    train, test = ((images[rows], labels[rows]) for rows in parts)
    return train, test, _DIGITS


def _cifar(name: str, root: Path) -> tuple:
    train, test = (_torchvision(name, root, train=train) for train in (True, False))
    return _channels_first(train.data, train.targets), _channels_first(test.data, test.targets), tuple(train.classes)


def _svhn(root: Path) -> tuple:
    train, test = (_torchvision("SVHN", root, split=split) for split in ("train", "test"))
    parts = (_channels_first(part.data.transpose(0, 2, 3, 1), part.labels) for part in (train, test))
    return *parts, _DIGITS


def _mnist(root: Path) -> tuple:
    """28x28 images, to which a black border of two pixels is added."""
    train, test = (_torchvision("MNIST", root, train=train) for train in (True, False))
    parts = ((F.pad(part.data, (2, 2, 2, 2))[:, None], part.targets.long()) for part in (train, test))
    return *parts, _DIGITS


def _channels_first(images: numpy.ndarray, labels) -> tuple[Tensor, Tensor]:
    """Arrays (N, H, W, C) and (N,) -> tensors (N, C, H, W) in channels_last memory and int64 (N,)."""
    return torch.from_numpy(numpy.ascontiguousarray(images)).permute(0, 3, 1, 2), torch.as_tensor(labels).long()


def _torchvision(name: str, root: Path, **part):
    """A data set of torchvision in ``root``; it is downloaded if it is missing or damaged."""
    dataset = functools.partial(getattr(torchvision_guard.torchvision().datasets, name), **part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's readers warn about NumPy
        try:
            return dataset(root)
        except Exception as damage:
            try:
                _download(dataset, root)
                return dataset(root)
            except Exception as error:
                with contextlib.suppress(OSError):
                    root.rmdir()  # fails unless the folder is empty, which means that it was made for nothing
                faults = [" ".join(str(fault).split()) or type(fault).__name__ for fault in (damage, error)]
                raise FileNotFoundError(
                    f"{name} is not whole in {root} ({faults[0]}) and could not be downloaded ({faults[1]}). Fetch it "
                    f"where there is internet access: python -m rqlib.data {name.lower()} --root FOLDER; then copy "
                    f"FOLDER to {root}, or name it in RQLIB_DATA"
                ) from None


def _download(dataset: Callable, root: Path) -> None:
    """Download into a temporary folder, then move each file to its place: no file in ``root`` is ever half-written."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as part, _impatient():
        dataset(part, download=True)
        for file in [path for path in Path(part).rglob("*") if path.is_file()]:
            place = root / file.relative_to(part)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Inside the block a server that does not answer within `_PATIENCE_SECONDS` is given up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


SOURCES: dict[str, Source] = {
    "digits": Source("digits", _digits, horizontal_flip=False, channels=3),
    "cifar10": Source("CIFAR-10", functools.partial(_cifar, "CIFAR10"), horizontal_flip=True),
    "cifar100": Source("CIFAR-100", functools.partial(_cifar, "CIFAR100"), horizontal_flip=True),
    "svhn": Source("SVHN", _svhn, horizontal_flip=False),
    "mnist": Source("MNIST", _mnist, horizontal_flip=False),
    "imagenet": Source("ImageNet", imagenet.read, horizontal_flip=True, mean_std=imagenet.MEAN_STD),
}
