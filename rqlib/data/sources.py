"""Where image sets come from: `SOURCES`, one entry a set, and `find`.

A source reads ``(train, test, classes)`` from a folder of image sets, train and test as a pair
(images uint8 (N, C, H, W), labels int64 (N,)). To add a set is one function and one entry.
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
_PATIENCE_SECONDS = 20.0  # for an answer of a server while downloading
_KNOWN_FOLDERS = {"cifar10-jpeg": ("CIFAR-10 (JPEG)", True), "mnist10k": ("MNIST-10k", False)}  # title, horizontal flip


@dataclass(frozen=True)
class Source:
    """How a set is read, and what belongs to it.

    Attributes:
        read: folder of image sets -> (train, test, classes).
        horizontal_flip: whether a mirrored image is still one of its class.
        channels: gray images are repeated to so many channels.
        mean_std: mean and standard deviation per channel, where they are not measured.
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
    """An image folder's path; a relative one is looked for in ``root``, in the project and in the working folder.

    Raises:
        FileNotFoundError: it is in none of them.
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
    """Scikit-learn's 1,797 digits of 8x8, resized to 32x32; a fifth of every class is for testing."""
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
    """28x28 images with a black border of two pixels."""
    train, test = (_torchvision("MNIST", root, train=train) for train in (True, False))
    parts = ((F.pad(part.data, (2, 2, 2, 2))[:, None], part.targets.long()) for part in (train, test))
    return *parts, _DIGITS


def _channels_first(images: numpy.ndarray, labels) -> tuple[Tensor, Tensor]:
    """Arrays (N, H, W, C) and (N,) -> tensors (N, C, H, W), memory channels_last, and int64 (N,)."""
    return torch.from_numpy(numpy.ascontiguousarray(images)).permute(0, 3, 1, 2), torch.as_tensor(labels).long()


def _torchvision(name: str, root: Path, **part):
    """A torchvision data set as it lies in ``root``, downloaded where it is missing or damaged."""
    dataset = functools.partial(getattr(torchvision_guard.torchvision().datasets, name), **part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its readers' own, about NumPy
        try:
            return dataset(root)
        except Exception as damage:
            try:
                _download(dataset, root)
                return dataset(root)
            except Exception as error:
                with contextlib.suppress(OSError):
                    root.rmdir()  # only where it is empty: made for nothing
                raise FileNotFoundError(_missing(name, root, damage, error)) from None


def _download(dataset: Callable, root: Path) -> None:
    """Download beside the files, then move each to its place: an interrupted download leaves nothing half-written."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as part, _impatient():
        dataset(part, download=True)
        for file in [path for path in Path(part).rglob("*") if path.is_file()]:
            place = root / file.relative_to(part)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _missing(name: str, root: Path, damage: Exception, error: Exception) -> str:
    return (
        f"{name} is not whole in {root} ({_line(damage)}) and could not be downloaded ({_line(error)}). Fetch it where "
        f"there is internet access: python -m rqlib.data {name.lower()} --root FOLDER; then copy FOLDER to {root}, "
        "or name it in RQLIB_DATA"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


SOURCES: dict[str, Source] = {
    "digits": Source("digits", _digits, horizontal_flip=False, channels=3),
    "cifar10": Source("CIFAR-10", functools.partial(_cifar, "CIFAR10"), horizontal_flip=True),
    "cifar100": Source("CIFAR-100", functools.partial(_cifar, "CIFAR100"), horizontal_flip=True),
    "svhn": Source("SVHN", _svhn, horizontal_flip=False),
    "mnist": Source("MNIST", _mnist, horizontal_flip=False),
    "imagenet": Source("ImageNet", imagenet.read, horizontal_flip=True, mean_std=imagenet.MEAN_STD),
}
