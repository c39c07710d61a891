"""Ten networks of different make, trained by a plain PyTorch loop on CIFAR-10 (JPEG); only state dicts are kept.

    python -m benchmarks.networks IMAGES FOLDER [NAME ...]

IMAGES is the path of ``cifar10-jpeg.zip``, FOLDER takes one file NAME.pt per network. A network whose file is there
is not trained again. Five networks are torchvision's, at 32 x 32; they and their pixels are as torchvision has them.
`batchnorm_after_relu` is made as somebody else might: gray levels 0 .. 255, BatchNorm after ReLU, ReLU on the logits.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib import data, models
from rqlib.core import torchvision_guard
from rqlib.core.vocabulary import ImageSpec

BATCH, LARGEST_RATE = 128, 2e-3
SOURCES = {
    "AlexNet": {"network": "AlexNet", "options": ["width=0.25"], "epochs": 6},
    "VGG_16": {"network": "VGG_16", "options": ["width=0.25"], "epochs": 3},
    "ResNet_18": {"network": "ResNet_18", "options": ["width=0.25"], "epochs": 3},
    "MobileNetV2": {"network": "MobileNetV2", "options": ["width=0.5"], "epochs": 2},
    "mobilenet_v3_small": {"network": "torchvision:mobilenet_v3_small", "epochs": 8},
    "resnet18": {"network": "torchvision:resnet18", "epochs": 5},
    "densenet121": {"network": "torchvision:densenet121", "epochs": 2},
    "shufflenet_v2_x1_0": {"network": "torchvision:shufflenet_v2_x1_0", "epochs": 4},
    "regnet_y_400mf": {"network": "torchvision:regnet_y_400mf", "epochs": 4},
    "batchnorm_after_relu": {
        "network": "benchmarks.networks:batchnorm_after_relu", "pixels": "0..255", "epochs": 6,
    },
}  # fmt: skip
"""Name -> what `workbook.network` is told to open it, and the epochs of its training."""

PIXELS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "0..255": ((0.0,) * 3, (1 / 255,) * 3)}
"""Mean and standard deviation that are taken from pixels in [0, 1] and divide them."""


def batchnorm_after_relu(num_classes: int = 10) -> nn.Module:
    """A network for gray levels from 0 to 255: convolution, ReLU, BatchNorm, six times; ReLU on the logits."""
    parts: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)):
        parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)]
        if inputs == outputs:
            parts += [nn.MaxPool2d(2), nn.Dropout(0.2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(128 * 4 * 4, num_classes), nn.ReLU())


def untrained(name: str, spec: ImageSpec) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A network with random weights, and the function that turns pixels in [0, 1] into what it expects."""
    source = SOURCES[name]["network"]
    if source in models.MODELS:
        _, _, width = SOURCES[name]["options"][0].partition("=")
        return models.build(source, spec, width=float(width)), lambda x: x
    if source.startswith("torchvision:"):
        pixels, catalog = "imagenet", torchvision_guard.torchvision().models
        network = catalog.get_model(name, weights=None, num_classes=spec.num_classes)
    else:
        pixels, network = SOURCES[name]["pixels"], batchnorm_after_relu(spec.num_classes)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in PIXELS[pixels])
    return network, lambda x: (x - mean) / std


def train(network: nn.Module, prepare: Callable[[Tensor], Tensor], images: data.ImageDataset, epochs: int) -> None:
    """AdamW with one cycle of the learning rate, random crop and flip, bfloat16 where torch offers it; in place."""
    network.to(memory_format=torch.channels_last).train()
    steps = epochs * math.ceil(len(images.train.labels) / BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LARGEST_RATE, total_steps=steps)
    rng = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for x, y in data.batches(*images.train, BATCH, shuffle=True, augment=images.augment, rng=rng):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(network(prepare(x)).float(), y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network: nn.Module, prepare: Callable[[Tensor], Tensor], split: data.Split) -> float:
    """Fraction of the images that are classified as labeled, in float32."""
    network.eval()
    hits = [(network(prepare(x)).argmax(1) == y).sum().item() for x, y in data.batches(*split, 500)]
    return sum(hits) / len(split.labels)


def main(archive: str, folder: str, *names: str) -> None:
    images = data.load(f"imagefolder:{archive}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names or SOURCES:
        path = Path(folder) / f"{name}.pt"
        if path.exists():
            continue
        torch.manual_seed(0)
        network, prepare = untrained(name, images.spec)
        start = time.perf_counter()
        train(network, prepare, images, SOURCES[name]["epochs"])
        seconds = time.perf_counter() - start
        torch.save(network.state_dict(), path)
        print(f"{name}: test accuracy {accuracy(network, prepare, images.test):.4f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
