"""The generator: mixtures of labels and noise become images that a teacher shall classify as asked.

After GDFQ (Xu et al. 2020, arXiv 2003.03603) and Qimera (Choi et al. 2021, arXiv 2111.02625).
"""

import dataclasses
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import data, measures
from rqlib.core import files, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.data import datasets
from rqlib.generator import features

_SMALL = 8  # pixels: what the linear layer gives is about so high and wide


class Generator(nn.Module):
    """(mixture (B, K), noise (B, L)) -> images (B, C, H, W) in [0, 1].

    ``h = standardize(mixture embedding + noise)`` over L; a linear layer to ``channels`` maps of about 8x8; nearest
    upsampling and 3x3 convolutions; tanh, standardized per channel, then the mean and spread of the images.

    Args:
        embedding: (K, L), a row a class, standardized to be as loud as the noise; trained with the rest.
        channels: of the first maps; half as many before the image.
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
        """Images of mixtures of labels; rows of ``mixture`` sum to 1, ``noise`` is N(0, 1)."""
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
        ValueError: as `features.classifier`.
    """
    policy = runtime.active()
    images = policy.place(torch.full((2, *spec.shape), 0.5))
    weight = features.classifier(policy.place(teacher), images).weight
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return policy.place(Generator(weight.cpu(), spec, channels))


def save(path: str | Path, generator: Generator) -> Path:
    """Write a generator: its weights, sizes and `ImageSpec`."""
    content = {"spec": dataclasses.asdict(generator.spec), "channels": generator.channels}
    files.save_tensors(path, content | {"state": generator.state_dict()})
    return Path(path)


def load(path: str | Path) -> Generator:
    """The generator of a file, in eval mode on the active device.

    Raises:
        FileNotFoundError, ValueError: as `files.load_tensors`; the file holds something else.
    """
    content = files.load_tensors(path)
    if missing := {"spec", "channels", "state"} - set(content):
        raise ValueError(f"{path}: expected a generator, found no {', '.join(sorted(missing))}")
    generator = Generator(content["state"]["embedding"], ImageSpec(**content["spec"]), content["channels"])
    generator.load_state_dict(content["state"])
    return runtime.active().place(generator.eval())


def single(labels: Tensor, classes: int) -> Tensor:
    """Labels (N,) as mixtures (N, K) of one."""
    return F.one_hot(labels, classes).float()


def superposed(count: int, classes: int, rng: torch.Generator, *, members: int | None = None) -> Tensor:
    """Mixtures (count, K) of labels drawn with replacement, weights softmax(N(0, 1)) (Qimera).

    Args:
        rng: of random numbers, on the CPU.
        members: labels in a mixture; by default a tenth of the classes, at least 2.
    """
    members = members or max(2, classes // 10)
    labels = torch.randint(classes, (count, members), generator=rng)
    weights = torch.randn(count, members, generator=rng).softmax(1)
    return torch.zeros(count, classes).scatter_add_(1, labels, weights)


def sample(generator: Generator, count: int = 12_800, *, seed: int = 0, batch_size: int = 256) -> datasets.Split:
    """Images uint8 (count, C, H, W) and the labels they were made for, in turn: as many of every class.

    Eval mode; the same seed gives the same images, whatever the batch size.

    Raises:
        ValueError: count < 1.
    """
    if count < 1:
        raise ValueError(f"expected count >= 1, got {count}")
    classes = len(generator.embedding)
    labels = torch.arange(count) % classes
    place = runtime.active().place
    return datasets.Split(images(generator, single(labels, classes), seed=seed, batch_size=batch_size), place(labels))


@torch.no_grad()
def images(generator: Generator, mixtures: Tensor, *, seed: int = 0, batch_size: int = 256) -> Tensor:
    """Images uint8 (N, C, H, W) of mixtures (N, K), one noise each; eval mode, seeded."""
    policy = runtime.active()
    policy.place(generator)
    noise = torch.randn(len(mixtures), generator.embedding.shape[1], generator=runtime.rng(seed))
    pairs = zip(mixtures.split(batch_size), noise.split(batch_size), strict=True)
    with runtime.evaluating(generator), policy.autocast():
        parts = [datasets.to_uint8(generator(*map(policy.place, pair))) for pair in pairs]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def boundary(generator: Generator, teacher: nn.Module, count: int = 12_800, *, seed: int = 0) -> data.Split:
    """Images uint8 of superposed labels, which lie between classes, each labeled as the teacher classifies it.

    Where `sample` asks for images the teacher is sure of, these are such as a small change can move: the loss on
    them is one minus the agreement with the teacher (boundary supporting samples: Qimera, arXiv 2111.02625).
    """
    mixtures = superposed(count, len(generator.embedding), runtime.rng(seed, 1))
    made = images(generator, mixtures, seed=seed)
    labels = runtime.active().place(mixtures.argmax(1))
    with runtime.exact():
        seen = measures.logits(teacher, made, labels).argmax(1)
    return data.Split(made, seen.to(labels))
