"""The generator: a network that makes images from mixtures of labels and noise.

It is trained until its teacher, the network whose training images are unknown, classifies the images as asked.

After GDFQ (Xu et al. 2020, arXiv 2003.03603) and Qimera (Choi et al. 2021, arXiv 2111.02625).
"""

import dataclasses
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.core import files, limits, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator import last_layer

_SMALL = 8  # pixels: height and width, about, of the maps that the linear layer gives


class Generator(nn.Module):
    """(mixture (B, K), noise (B, L)) -> images (B, C, H, W) in [0, 1].

    ``h = standardize(mixture embedding + noise)`` over L; a linear layer to ``channels`` maps of about 8x8; nearest
    upsampling and 3x3 convolutions; tanh, standardized per channel, then the mean and spread of the images.

    Args:
        embedding: (K, L), one row per class. Each row is standardized, so that it counts as much as the noise;
            it is trained with the rest.
        channels: number of the first maps; the last maps before the image are half as many.

    Raises:
        ValueError: fewer than 2 channels.
    """

    def __init__(self, embedding: Tensor, spec: ImageSpec, channels: int = 128):
        super().__init__()
        if channels < 2:
            raise ValueError(f"expected at least 2 channels, got {channels}")
        self.spec, self.channels = spec, channels
        self.embedding = nn.Parameter(F.layer_norm(embedding.detach().float(), embedding.shape[1:]))
        doublings = max(2, math.ceil(math.log2(max(spec.height, spec.width) / _SMALL)))
        self.small = (channels, *(math.ceil(side / 2**doublings) for side in (spec.height, spec.width)))
        self.expand = nn.Linear(embedding.shape[1], math.prod(self.small))
        widths = [*[channels] * (doublings - 1), channels // 2]
        blocks = [_block(inputs, outputs) for inputs, outputs in zip([channels, *widths], widths, strict=False)]
        to_image = nn.Conv2d(widths[-1], spec.channels, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(channels), *blocks, to_image, nn.Tanh())
        self.standardize = nn.BatchNorm2d(spec.channels, affine=False)
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1))

    def forward(self, mixture: Tensor, noise: Tensor) -> Tensor:
        """Images of mixtures of labels; every row of ``mixture`` sums to 1, ``noise`` is N(0, 1)."""
        h = F.layer_norm(mixture @ self.embedding + noise, noise.shape[1:])
        maps = self.expand(h).unflatten(1, self.small).contiguous(memory_format=torch.channels_last)
        image = self.body(maps)[:, :, : self.spec.height, : self.spec.width]
        return (self.mean + self.std * self.standardize(image.float())).clamp(0, 1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))


def build(teacher: nn.Module, spec: ImageSpec, *, channels: int = 128, seed: int = 0) -> Generator:
    """A fresh generator for any classifier; its embedding starts as the rows of the teacher's last weight.

    Raises:
        ValueError: as `last_layer.classifier`.
    """
    policy = runtime.active()
    images = policy.place(torch.full((2, *spec.shape), 0.5))
    _, weight = last_layer.classifier(policy.place(teacher), images)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return policy.place(Generator(weight.cpu(), spec, channels))


def save(path: str | Path, generator: Generator) -> Path:
    """Write a generator to a file: its weights, its number of channels and its `ImageSpec`."""
    content = {"spec": dataclasses.asdict(generator.spec), "channels": generator.channels}
    files.save_tensors(path, content | {"state": generator.state_dict()})
    return Path(path)


def load(path: str | Path) -> Generator:
    """Read a generator from a file of `save`; it is in eval mode on the active device.

    Raises:
        FileNotFoundError, ValueError: as `files.load_tensors`; the file holds something other than a generator.
    """
    content = files.load_tensors(path)
    if missing := {"spec", "channels", "state"} - set(content):
        raise ValueError(f"{path}: expected a generator, found no {', '.join(sorted(missing))}")
    state, made = content["state"], (ImageSpec(**content["spec"]), content["channels"])
    with torch.device("meta"):
        needed = limits.bytes_of(Generator(state["embedding"].to("meta"), *made).state_dict())
    limits.check(path, needed, limits.bytes_of(state), 1, "a generator")
    generator = Generator(state["embedding"], *made)
    generator.load_state_dict(state)
    return runtime.active().place(generator.eval())
