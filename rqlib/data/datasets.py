"""Image sets by name, as uint8 tensors on the device, and the batches that networks are given."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
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
    """Images uint8 (N, C, H, W) in channels_last memory, and labels int64 (N,).

    The images are a tensor, except those of ``imagenet``, which are read from their files when indexed.
    """

    images: Tensor | ImageFiles
    labels: Tensor

    def take(self, count: int) -> "Split":
        """The first ``count`` images, read into memory, and their labels; all of them if there are fewer."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """A named set of images. `dataclasses.replace` changes a property, for example ``horizontal_flip=False``.

    Attributes:
        title: the name in tables and figures.
        horizontal_flip: whether a mirrored image still belongs to its class.
        validation_indices: int64, ascending: which of the published training images are held out.
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
        """A function (x, rng=...) -> x of the same shape: random crop, and flip if `horizontal_flip` allows it."""
        return functools.partial(crop_and_flip, flip=self.horizontal_flip)

    def calibration(self, count: int) -> Tensor:
        """The first ``count`` training images, uint8, on which quantization observes the ranges of signals."""
        return self.train.images[:count]

    def take(self, **counts: int) -> "ImageDataset":
        """A copy with only the first images of the named splits, for example ``take(train=1000, validation=100)``."""
        splits = {name: getattr(self, name).take(count) for name, count in counts.items()}
        return dataclasses.replace(self, **splits)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, part).labels):,} {part}" for part in ("train", "validation", "test"))
        shape = "x".join(map(str, self.spec.shape))
        return f"{self.title}: {counts} images of {shape} in {len(self.classes)} classes"


def load(name: str, root: str | Path | None = None, *, channels: int | None = None) -> ImageDataset:
    """The image set ``name``, in memory on the active device; one tenth of its training images is for validation.

    The mean and standard deviation in ``spec`` are those of the published training images.

    Args:
        name: of `sources.SOURCES`, or ``imagefolder:PATH``, a folder or .zip with ``train/CLASS/*`` and
            ``test/CLASS/*``.
        root: the folder of image sets; `data_root` is the default.
        channels: 3 repeats the channel of gray images, which digits do by default.

    Raises:
        ValueError: unknown name; faulty image folder; RGB images asked for in one channel.
        FileNotFoundError: the set is not there and cannot be downloaded.
    """
    source = sources.find(name)
    train, test, classes = source.read(data_root(root))
    train, test = (_with_channels(Split(*part), channels or source.channels) for part in (train, test))
    mean, std = source.mean_std or mean_and_std(train.images)
    spec = ImageSpec(*train.images.shape[1:], len(classes), mean, std)
    rest, held_out = hold_out(len(train.labels))
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
    """The folder of image sets: ``root`` if given, else the variable ``RQLIB_DATA``, else ``data/`` of the project."""
    root = root or os.environ.get("RQLIB_DATA") or files.project_root() / "data"
    return Path(root).expanduser().absolute()


def hold_out(count: int) -> tuple[Tensor, Tensor]:
    """Indices (rest, held out) of ``count`` images, both ascending; a tenth, always the same, is held out."""
    if count < 2:
        raise ValueError(f"expected at least 2 training images, of which one is held out for validation, got {count}")
    order = torch.randperm(count, generator=runtime.rng(0))
    held_out = max(1, round(count / _VALIDATION_SHARE))
    return order[held_out:].sort().values, order[:held_out].sort().values


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel in pixels of [0, 1], rounded to four digits.

    A standard deviation is at least one gray level (1 / 255).

    Args:
        images: uint8 (N, C, H, W).
    """
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
    """``images[rows]`` in channels_last memory; ``index_select`` copies whole images, much faster than indexing."""
    if isinstance(rows, slice) or isinstance(images, ImageFiles):
        return images[rows]
    return images.permute(0, 2, 3, 1).index_select(0, rows.to(images.device)).permute(0, 3, 1, 2)


def _place(split: Split) -> Split:
    """Move images that are in memory to the device, once. Images that are read from files move batch by batch."""
    return split if isinstance(split.images, ImageFiles) else Split(*map(runtime.active().place, split))


def to_pixels(images: Tensor) -> Tensor:
    """Images uint8 in 0..255 -> float32 in [0, 1]; floating point images keep their values and become float32.

    Raises:
        ValueError: images of another integer type.
    """
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
    least: int = 1,
    shuffle: bool = False,
    augment: Callable[..., Tensor] | None = None,
    rng: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, y) on the active device, every image once: x float32 (B, C, H, W) in [0, 1], y int64 (B,).

    Args:
        images: uint8, or floating point in [0, 1] (images that a generator made).
        least: a last batch of fewer images joins the one before.
        shuffle: whether the order of the images is drawn from ``rng``.
        augment: (images, rng=...) -> images, applied to each batch before it becomes float.
        rng: on the CPU; the same state gives the same batches on every device.

    Raises:
        ValueError: numbers of images and labels differ, or batch_size < 1.
    """
    if len(images) != len(labels):
        raise ValueError(f"expected one label per image, got {len(images)} images and {len(labels)} labels")
    if batch_size < 1:
        raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
    return _batches(images, labels, slices(len(labels), batch_size, least), shuffle, augment, rng)


def slices(count: int, batch_size: int, least: int = 1) -> list[slice]:
    """Which of ``count`` images each batch holds; a last batch of fewer than ``least`` joins the one before."""
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] < least:
        starts.pop()
    return [slice(*ends) for ends in pairwise([*starts, count])]


def _batches(images, labels, parts: list[slice], shuffle: bool, augment, rng) -> Iterator[tuple[Tensor, Tensor]]:
    place = runtime.active().place
    order = torch.randperm(len(labels), generator=rng).to(labels.device) if shuffle else None
    for rows in parts:
        rows = rows if order is None else order[rows]
        x, y = place(_pick(images, rows)), place(labels[rows])
        if augment is not None:
            x = augment(x, rng=rng)
        yield to_pixels(x), y
