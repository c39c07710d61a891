"""What pixels a network expects: five conventions by name, or a mean and a standard deviation.

A network takes pixels in [0, 1]. Its first layer, `blocks.Normalize`, turns them into what the rest expects.
"""

import dataclasses

import torch
from torch import nn

from rqlib.core import vocabulary
from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import Normalize

NORMALIZED = "normalized"
"""The convention of the images themselves: their own mean and standard deviation."""

CONVENTIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "0..1": ((0.0,), (1.0,)),
    "0..255": ((0.0,), (1 / 255,)),
    "-1..1": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Name -> (mean, std), for all channels alike or for each: the network expects ``(x - mean) / std``, x in [0, 1]."""


def usual(name: str) -> str:
    """The convention of a network of this name: ``imagenet`` for torchvision's, ``normalized`` for others."""
    return "imagenet" if name.startswith("torchvision:") else NORMALIZED


def with_pixels(spec: ImageSpec, pixels: str) -> ImageSpec:
    """The spec whose normalization is that of a convention.

    Args:
        spec: of the images, with their own mean and standard deviation.
        pixels: ``normalized``, a name of `CONVENTIONS`, or ``MEAN/STD`` with one number or one for each channel,
            for example ``0.49,0.48,0.45/0.25,0.24,0.26``.

    Raises:
        ValueError: none of these, or numbers of channels differ.
    """
    if pixels == NORMALIZED:
        return spec
    mean, std = CONVENTIONS.get(pixels) or _numbers(pixels)
    for values in (mean, std):
        if len(values) not in (1, spec.channels):
            raise ValueError(
                f"pixels={pixels!r}: expected one number, or one for each of {spec.channels} channels, got "
                f"{len(values)}; images of one channel become color by data.load(..., channels=3)"
            )
    if not all(0 <= value <= 1 for value in mean):  # NaN is refused, too
        raise ValueError(
            f"pixels={pixels!r}: expected means of pixels in [0, 1], got {mean}; divide gray levels by 255, both the "
            "mean and the standard deviation"
        )
    mean, std = (values * spec.channels if len(values) == 1 else values for values in (mean, std))
    return dataclasses.replace(spec, mean=mean, std=std)


def names(spec: ImageSpec) -> list[str]:
    """Names of the conventions that images of so many channels can have."""
    return [NORMALIZED, *(name for name, (mean, _) in CONVENTIONS.items() if len(mean) in (1, spec.channels))]


def in_words(found: ImageSpec, images: ImageSpec) -> str:
    """The convention of a network's normalization; ``MEAN/STD`` if it is none of those that have a name."""
    for name in names(images):
        if _same(found, with_pixels(images, name)):
            return name
    mean, std = (",".join(f"{value:.4g}" for value in values) for values in (found.mean, found.std))
    return f"{mean}/{std}"


def of(model: nn.Module, spec: ImageSpec) -> ImageSpec:
    """The spec with the normalization that the model really has; as it is given if that is the same."""
    mean, std = (buffer.flatten().tolist() for buffer in (_first(model).mean, _first(model).std))
    found = dataclasses.replace(spec, mean=mean, std=std)
    return spec if _same(found, spec) else found


def change(model: nn.Module, spec: ImageSpec) -> None:
    """Give a model, in place, the normalization of a spec."""
    fresh = Normalize(spec)
    own = _first(model)
    own.mean.copy_(fresh.mean)
    own.std.copy_(fresh.std)


def _first(model: nn.Module) -> Normalize:
    """The normalization of a network of `models.build`, also if another module was put around it."""
    return next(module for module in model.modules() if isinstance(module, Normalize))


def _numbers(pixels: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        mean, std = (tuple(float(value) for value in part.split(",")) for part in pixels.split("/"))
    except ValueError:
        unknown = vocabulary.did_you_mean("pixels", pixels, (NORMALIZED, *CONVENTIONS))
        raise ValueError(f"{unknown}; or MEAN/STD such as 0.49,0.48,0.45/0.25,0.24,0.26") from None
    return mean, std


def _same(one: ImageSpec, two: ImageSpec) -> bool:
    """Whether two normalizations are equal in float32."""
    pairs = ((one.mean, two.mean), (one.std, two.std))
    return all(torch.equal(torch.tensor(first), torch.tensor(second)) for first, second in pairs)
