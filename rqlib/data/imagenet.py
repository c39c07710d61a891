"""ImageNet's validation images, for calibration and evaluation, read from their files batch by batch.

They are too many to be held in memory.
"""

import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rqlib.core import runtime, torchvision_guard
from rqlib.data import decoding

MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's pretrained networks expect
_RESIZED, _CROPPED = 256, 224
_CALIBRATION_SHARE = 10  # one validation image in ten


class ImageFiles:
    """Images that are read from their files when indexed, as if they were a tensor uint8 (N, 3, H, W).

    They are turned as their EXIF data say; transparent pixels are put on white, which one warning says.
    """

    dtype = torch.uint8

    def __init__(self, paths: list[str], transform, size: tuple[int, int]):
        self.paths, self.transform, self.size = paths, transform, size
        self.said: list[str] = []  # the first image with transparent pixels, once the warning was given

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, H, W)."""
        return torch.Size([len(self), 3, *self.size])

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        if isinstance(rows, int):
            return self._said(self.paths[rows], *self._read(self.paths[rows]))
        paths = self.subset(rows).paths
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = [self._said(path, *found) for path, found in zip(paths, pool.map(self._read, paths), strict=True)]
        return torch.stack(images) if images else torch.empty(0, *self.shape[1:], dtype=self.dtype)

    def subset(self, rows: slice | Tensor) -> "ImageFiles":
        """The images at ``rows``, not read yet."""
        paths = self.paths[rows] if isinstance(rows, slice) else [self.paths[row] for row in rows.tolist()]
        images = ImageFiles(paths, self.transform, self.size)
        images.said = self.said
        return images

    def _said(self, path: str, image: Tensor, transparent: bool) -> Tensor:
        """The image; the first one of the set that has transparent pixels is warned of."""
        if transparent and not self.said:
            self.said.append(path)
            warnings.warn(f"{path} and perhaps others {decoding.TRANSPARENT}", stacklevel=3)
        return image

    def _read(self, path: str) -> tuple[Tensor, bool]:
        try:
            with Image.open(path) as image:
                picture, transparent = decoding.seen(image)
                return self.transform(picture.convert("RGB")), transparent
        except Exception as error:
            raise ValueError(f"cannot read image {path} ({error}); repair or replace it") from error


def read(root: Path) -> tuple:
    """(calibration, test, classes) of ``root/imagenet`` in torchvision's layout: ``val/WNID/*.JPEG`` and ``meta.bin``.

    A tenth of the validation images is for calibration, the others for testing. Both are in a random order that never
    changes. An image is resized to 256 pixels on its shorter side, and the central 224x224 pixels are taken.

    Raises:
        FileNotFoundError: the folder does not hold the set.
        ValueError: ``val/`` holds other images than ``meta.bin`` lists.
    """
    folder = root / "imagenet"
    transforms = torchvision_guard.torchvision().transforms
    dataset = _listed(folder)
    paths, labels = zip(*dataset.samples, strict=True)
    steps = [transforms.Resize(_RESIZED), transforms.CenterCrop(_CROPPED), transforms.PILToTensor()]
    images = ImageFiles(list(paths), transforms.Compose(steps), (_CROPPED, _CROPPED))
    order = torch.randperm(len(images), generator=runtime.rng(0))
    count = len(images) // _CALIBRATION_SHARE
    calibration, test = ((images.subset(rows), torch.tensor(labels)[rows]) for rows in (order[:count], order[count:]))
    return calibration, test, tuple(names[0] for names in dataset.classes)


def _listed(folder: Path):
    """torchvision's data set, checked against its own list of validation images."""
    imagenet = torchvision_guard.torchvision().datasets.imagenet
    try:
        dataset = imagenet.ImageNet(folder, "val")
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"ImageNet is not in {folder} ({error}). It is not for free download: from image-net.org put "
            "ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_val.tar there, then: python -m rqlib.data imagenet"
        ) from error
    expected = Counter(imagenet.load_meta_file(folder)[1])
    found = Counter(dataset.wnids[label] for label in dataset.targets)
    if found != expected:
        raise ValueError(
            f"{folder}: expected the {expected.total():,} validation images that meta.bin lists, found "
            f"{found.total():,} in val/, or other classes; delete val/ and extract ILSVRC2012_img_val.tar again"
        )
    return dataset
