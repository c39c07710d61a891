"""Bounds in forward passes of the network, full CROWN in seconds per image, smoothing against a loop of batches.

CNN_small on the digits: naturally trained, and trained by IBP. Both are trained once and kept in ``outputs``.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import row
from rqlib import certification, data
from rqlib.certification import boxes, linear_bounds, programs
from rqlib.core import files, runtime
from rqlib.models import catalog
from rqlib.training import certified_objectives

COUNT, CHUNK, RADIUS, SIGMA, DRAWS = 256, 64, 8 / 255, 0.25, 10_000
FOLDER = files.project_root() / "outputs/bench_certification"


def trained(dataset: data.ImageDataset, name: str, *, epochs: int = 24, batch_size: int = 32) -> nn.Module:
    """CNN_small, trained naturally or by IBP for 8/255; trained once."""
    model, path = catalog.build("CNN_small", dataset.spec, seed=0), FOLDER / f"{name}.pt"
    if not path.exists():
        objective = certified_objectives.Certified(RADIUS if name == "ibp" else 0.0)
        if name == "ibp":
            objective.initialize(model)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for epoch in runtime.progress(range(epochs), "training a network of the benchmark"):
            batches = list(data.batches(*dataset.train, batch_size, shuffle=True, rng=runtime.rng(epoch)))
            objective.begin_epoch(model, epoch, epochs, len(batches))
            for x, y in batches:
                loss = objective(model.train(), x, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        files.save_tensors(path, model.state_dict())
    model.load_state_dict(files.load_tensors(path))
    return model.eval()


@torch.no_grad()
def against_forwards(model: nn.Module, title: str, x: Tensor, y: Tensor, *, active: float | None = None) -> list[dict]:
    """Rows: IBP and CROWN-IBP of all margins, or of those that IBP leaves open, against one forward pass."""
    steps = programs.program(model, tuple(x.shape[1:]))
    parts = list(zip(x.split(CHUNK), y.split(CHUNK), strict=True))

    def forward() -> Tensor:
        return torch.cat([model(some) for some, _ in parts])

    def ibp() -> Tensor:
        found = ((boxes.propagate(steps, boxes.of_images(some, RADIUS)), labels) for some, labels in parts)
        return torch.cat([boxes.margins(steps, boxes_of, labels) for boxes_of, labels in found])

    def crown_ibp() -> Tensor:
        margins = []
        for some, labels in parts:
            found = boxes.propagate(steps, boxes.of_images(some, RADIUS))
            known = boxes.margins(steps, found, labels)
            wanted = (known <= 0) & (model(some).argmax(1) == labels)[:, None] if active else None
            margins.append(torch.maximum(known, linear_bounds.margins(steps, found, labels, wanted=wanted)))
        return torch.cat(margins)

    left = (ibp() <= 0).float().mean().item()
    certified = (crown_ibp().amin(1) > 0).float().mean().item()
    agree = f"IBP leaves {left:.1%} of the margins open; {certified:.1%} of the images certified"
    how = {"agree": agree, "repeats": 25}  # some of these take only milliseconds
    rows = [row(f"IBP, {title}, {COUNT} images", "one forward", ibp, forward, at_least=1 / 2.5, **how)]
    kind, least = ("open margins", 1 / active) if active else ("9 margins", 1 / 16)
    work = f"CROWN-IBP, {kind}, {title}, {COUNT} images"
    return [*rows, row(work, "one forward", crown_ibp, forward, at_least=least, **how)]


def full_crown(model: nn.Module, x: Tensor, y: Tensor) -> dict:
    """One row: CROWN of eight images against 0.3 seconds for each."""
    return row(
        "CROWN, natural, 8 images",
        "0.3 s per image",
        lambda: certification.crown(model, x, y, epsilon=RADIUS),
        lambda: time.sleep(0.3 * len(x)),
        at_least=1.0,
        agree="a budget",
    )


@torch.no_grad()
def plain_smoothing(model: nn.Module, x: Tensor, y: Tensor) -> list[int]:
    """How often the right class is answered: image by image, in batches of 400 draws."""
    hits = []
    for image, label in zip(x, y, strict=True):
        counts = torch.zeros(10, dtype=torch.int64)
        for _ in range(DRAWS // 400):
            answers = model(image + SIGMA * torch.randn(400, *image.shape)).argmax(1)
            counts += F.one_hot(answers, 10).sum(0)
        hits.append(int(counts[label]))
    return hits


def smoothing(model: nn.Module, x: Tensor, y: Tensor) -> dict:
    """One row: the radius 0.25 decided in stages, against all draws for every image."""
    smoothed = certification.smooth(model, sigma=SIGMA)
    staged, whole = (smoothed.certify(x, y, radius=0.25, draws=draws) for draws in ((100, 1_000, DRAWS), DRAWS))
    alike = (staged.certified == whole.certified).mean()
    return row(
        f"smoothing at n = {DRAWS:,}, natural, {len(x)} images, radius 0.25",
        "batches of 400",
        lambda: smoothed.certify(x, y, radius=0.25),
        lambda: plain_smoothing(model, x, y),
        at_least=3.0,
        agree=f"{alike:.1%} of the images decided alike with all draws",
        repeats=1,
    )


def measure() -> list[dict]:
    """One row per comparison, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dataset = data.load("digits")
        natural, by_ibp = (trained(dataset, name) for name in ("natural", "ibp"))
        x, y = next(data.batches(*dataset.test, COUNT))
        with runtime.exact():
            return [
                *against_forwards(natural, "natural", x, y),
                *against_forwards(by_ibp, "trained by IBP", x, y, active=5),
                full_crown(natural, x[:8], y[:8]),
                smoothing(natural, x[:16], y[:16]),
            ]
    finally:
        torch.set_num_threads(threads)
