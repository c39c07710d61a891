"""Training throughput against the usual loop: DataLoader, PIL transforms, float32, NCHW."""

import dataclasses

import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks import row
from rqlib import data, models, training
from rqlib.core import runtime, torchvision_guard
from rqlib.training import objectives

IMAGES, BATCH = 1_280, 128
CASES = {"SmallCNN": 1.0, "ResNet_18": 0.25}


def random_images(count: int) -> data.ImageDataset:
    """Random pixels in CIFAR-10's shape: throughput does not depend on what they show."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, 10, (count,), generator=rng)
    digits = data.load("digits")
    empty = data.Split(images[:0], labels[:0])
    return dataclasses.replace(
        digits, train=data.Split(images, labels), validation=empty, test=empty, horizontal_flip=True
    )


def usual_loop(network: torch.nn.Module, dataset: data.ImageDataset):
    """One epoch as most scripts write it."""
    transforms = torchvision_guard.torchvision().transforms
    transform = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in dataset.train.images]
    pairs = list(zip(pictures, dataset.train.labels.tolist(), strict=True))
    loader = torch.utils.data.DataLoader(
        pairs,
        batch_size=BATCH,
        shuffle=True,
        num_workers=0,
        collate_fn=lambda batch: (torch.stack([transform(x) for x, _ in batch]), torch.tensor([y for _, y in batch])),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def epoch() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()

    return epoch


def measure() -> list[dict]:
    """One row per network: seconds for one epoch of the images."""
    rows = []
    dataset = random_images(IMAGES)
    for name, width in CASES.items():
        recipe = dataclasses.replace(training.recipe("fast"), epochs=1, batch_size=BATCH)
        networks = [models.build(name, dataset.spec, width=width).train() for _ in range(2)]
        runtime.use()
        ours = lambda network=networks[0]: training.fit(network, dataset, objectives.natural, recipe)  # noqa: B023, E731
        theirs = usual_loop(networks[1], dataset)
        agree = "same network, images, batch size, augmentation and optimizer"
        work = f"train {name}, width {width}, {IMAGES} images, batch {BATCH}, {torch.get_num_threads()} threads"
        rows.append(row(work, "DataLoader + PIL, float32, NCHW", ours, theirs, at_least=2.0, agree=agree))
    return rows
