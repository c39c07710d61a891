"""Image sets by name, as uint8 tensors on the device: splits, batches, augmentation.

``python -m rqlib.data NAME`` downloads a set, or prepares an image folder, and says what is in it.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rqlib.core import files, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.data import sources
from rqlib.data.augmentation import crop_and_flip
from rqlib.data.imagenet import ImageFiles

_VALIDATION_SHARE = 10  # one training image in ten


class Split(NamedTuple):
    """Images uint8 (N, C, H, W), memory channels_last, and labels int64 (N,).

    The images of ``imagenet`` are read when they are indexed (`ImageFiles`), all others are a tensor.
    """

    images: Tensor | ImageFiles
    labels: Tensor

    def take(self, count: int) -> "Split":
        """The first ``count`` images and their labels, or all where there are fewer."""
        first = slice(count)
        images = self.images.subset(first) if isinstance(self.images, ImageFiles) else self.images[first]
        return Split(images, self.labels[first])


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """A named set of images; change a property with `dataclasses.replace` (say: ``horizontal_flip=False``).

    Attributes:
        title: the name in tables and figures.
        horizontal_flip: whether a mirrored image is still one of its class.
        validation_indices: int64 (N_validation,), ascending; which of the set's own training images
            are held out.
    """

    name: str
    title: str
    train: Split
    validation: Split
    test: Split
    spec: ImageSpec
    classes: tuple[str, ...]
    horizontal_flip: bool
    validation_indices: Tensor

    @property
    def augment(self) -> Callable[..., Tensor]:
        """(x, rng=...) -> x of the same shape: random crop, and flip where the set allows it."""
        return functools.partial(crop_and_flip, flip=self.horizontal_flip)

    def calibration(self, count: int) -> Tensor:
        """The first ``count`` training images, uint8, that the ranges of signals are observed on."""
        return self.train.images[:count]

    def take(self, **counts: int) -> "ImageDataset":
        """A copy with at most so many images of the named splits: ``take(train=1000, validation=100)``."""
        splits = {name: getattr(self, name).take(count) for name, count in counts.items()}
        return dataclasses.replace(self, **splits)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, part).labels):,} {part}" for part in ("train", "validation", "test"))
        shape = "x".join(map(str, self.spec.shape))
        return f"{self.title}: {counts} images of {shape} in {len(self.classes)} classes"


def load(
    name: str, root: str | Path | None = None, *, channels: int | None = None, validation_seed: int = 0
) -> ImageDataset:
    """The image set ``name``, in memory on the active device, with a tenth of its training images held out.

    Args:
        name: a name of `sources.SOURCES`, or ``imagefolder:PATH`` of a folder or .zip with
            ``train/CLASS/*`` and ``test/CLASS/*``.
        root: the folder of image sets; else the variable ``RQLIB_DATA``, else ``data/`` of the project.
        channels: 3 repeats the channel of a gray set; by default as the set has them (digits: 3).
        validation_seed: which training images are held out depends on it.

    Mean and standard deviation of the result's ``spec`` are those of the set's training images.

    Raises:
        ValueError: unknown name; faulty image folder; RGB images asked for in one channel.
        FileNotFoundError: the set is not there and cannot be downloaded.
    """
    source = sources.find(name)
    train, test, classes = source.read(data_root(root))
    train, test = (_with_channels(Split(*part), channels or source.channels) for part in (train, test))
    mean, std = source.mean_std or mean_and_std(train.images)
    spec = ImageSpec(*train.images.shape[1:], len(classes), mean, std)
    rest, held_out = hold_out(len(train.labels), validation_seed)
    return ImageDataset(
        name=name,
        title=source.title,
        train=_place(_subset(train, rest)),
        validation=_place(_subset(train, held_out)),
        test=_place(test),
        spec=spec,
        classes=classes,
        horizontal_flip=source.horizontal_flip,
        validation_indices=held_out,
    )


def data_root(root: str | Path | None = None) -> Path:
    """The folder of image sets: the argument, else ``RQLIB_DATA``, else ``data/`` of the project."""
    root = root or os.environ.get("RQLIB_DATA") or files.project_root() / "data"
    return Path(root).expanduser().absolute()


def hold_out(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (rest, held out) of ``count`` images, a seeded tenth held out, each ascending."""
    if count < 2:
        raise ValueError(f"expected at least 2 training images, of which one is held out for validation, got {count}")
    order = torch.randperm(count, generator=runtime.rng(seed))
    held_out = max(1, round(count / _VALIDATION_SHARE))
    return order[held_out:].sort().values, order[:held_out].sort().values


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel in pixels of [0, 1], to four digits; std at least one gray level."""
    counts = [torch.bincount(channel.reshape(-1), minlength=256) for channel in images.unbind(1)]
    shares = torch.stack(counts).double() / counts[0].sum()  # (C, 256): of the pixels with each gray level
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ levels
    std = (shares @ levels.square() - mean.square()).clamp(min=255**-2).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _with_channels(split: Split, channels: int | None) -> Split:
    images, labels = split
    if channels in (None, images.shape[1]):
        return split
    if images.shape[1] != 1:
        raise ValueError(
            f"expected channels {images.shape[1]} as the images have, got {channels}; only gray is repeated"
        )
    return Split(images.expand(-1, channels, -1, -1).contiguous(memory_format=torch.channels_last), labels)


def _subset(split: Split, rows: Tensor) -> Split:
    images, labels = split
    return Split(images.subset(rows) if isinstance(images, ImageFiles) else _pick(images, rows), labels[rows])


def _pick(images: Tensor | ImageFiles, rows: slice | Tensor) -> Tensor:
    """``images[rows]``, memory channels_last; whole images are copied, several times as fast as indexing."""
    if isinstance(rows, slice) or isinstance(images, ImageFiles):
        return images[rows]
    return images.permute(0, 2, 3, 1).index_select(0, rows.to(images.device)).permute(0, 3, 1, 2)


def _place(split: Split) -> Split:
    """Move images that are in memory to the device, once; what is read from files is placed batch by batch."""
    return split if isinstance(split.images, ImageFiles) else Split(*map(runtime.active().place, split))


def to_pixels(images: Tensor) -> Tensor:
    """Images uint8 in 0..255 -> float32 in [0, 1]; images that are already floating point stay as they are."""
    if images.dtype == torch.uint8:
        return images / 255
    if not images.is_floating_point():
        raise ValueError(f"expected images uint8, or floating point in [0, 1], got {images.dtype}")
    return images.float()


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] -> uint8, rounded to the nearest gray level."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def batches(
    images: Tensor | ImageFiles,
    labels: Tensor,
    batch_size: int,
    *,
    shuffle: bool = False,
    augment: Callable[..., Tensor] | None = None,
    rng: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, y) on the active device, every image once: x float32 (B, C, H, W) in [0, 1], y int64 (B,).

    Args:
        images: uint8, or floating point in [0, 1] (pseudo-data).
        shuffle: in an order drawn from ``rng``.
        augment: (images, rng=...) -> images, applied to each batch before it becomes float.
        rng: on the CPU; the same state gives the same batches on every device.

    Raises:
        ValueError: numbers of images and labels differ, or batch_size < 1.
    """
    if len(images) != len(labels):
        raise ValueError(f"expected one label an image, got {len(images)} images and {len(labels)} labels")
    if batch_size < 1:
        raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
    return _batches(images, labels, batch_size, shuffle, augment, rng)


def _batches(images, labels, batch_size: int, shuffle: bool, augment, rng) -> Iterator[tuple[Tensor, Tensor]]:
    place = runtime.active().place
    order = torch.randperm(len(labels), generator=rng).to(labels.device) if shuffle else None
    for start in range(0, len(labels), batch_size):
        rows = slice(start, start + batch_size)
        rows = rows if order is None else order[rows]
        x, y = place(_pick(images, rows)), place(labels[rows])
        if augment is not None:
            x = augment(x, rng=rng)
        yield to_pixels(x), y
