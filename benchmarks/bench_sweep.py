"""The sweep over 43 formats against one float forward, and against networks that search for the nearest level."""

import copy
import functools

import torch
from torch import Tensor, nn

from benchmarks import row
from benchmarks.bench_rounding import by_search, by_table
from rqlib import calibration, evaluate, formats, integer, models, quantize, runtime
from rqlib.formats import FLOAT, INT, Format
from rqlib.vocabulary import ImageSpec

IMAGES, CALIBRATION, LOOK_UP_IMAGES, BATCH = 200, 64, 20, 100


class LookUp(nn.Module):
    """A signal on the grid of a format by a search among its levels."""

    def __init__(self, format: Format, scale: Tensor, search):
        super().__init__()
        self.format, self.scale, self.search = format, scale, search

    def forward(self, x: Tensor) -> Tensor:
        return self.search(self.format, x / self.scale) * self.scale


def with_look_up(network: nn.Module, search) -> nn.Module:
    """A quantized network whose signals are rounded by a search; its weights are on the grid already."""
    twin = copy.deepcopy(network)
    for name, point in network.quantizers.named_children():
        setattr(twin.quantizers, name, LookUp(point.format, point.scale, search))
    return twin


def resnet() -> tuple[nn.Module, Tensor, Tensor]:
    """ResNet_18 of full width with plausible BatchNorm statistics, random pictures and labels."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    model = models.build("ResNet_18", ImageSpec()).train()
    with torch.no_grad():
        model(images[:32] / 255)
    return model.eval(), images, torch.randint(0, 10, (IMAGES,))


def against_the_float_forward(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> dict:
    """Seconds a format of the whole sweep, calibration and similarities included, and of one float forward."""
    with runtime.using("cpu", precision):
        sweep = functools.partial(quantize.sweep, model, formats.GRID, images[:CALIBRATION], images, labels)
        forward = functools.partial(evaluate.logits, model, images, labels, batch_size=BATCH)
        frame = sweep()
        agree = f"INT_16 classifies {frame.agreement[14]:.1%} as float does"
        work = f"sweep of 43 formats, ResNet_18, {IMAGES} images, a format ({precision})"
        found = row(work, "one float forward", sweep, forward, at_least=1 / 1.3, agree=agree)
    found["seconds"] /= len(formats.GRID)
    found["ratio"] *= len(formats.GRID)
    return found


def against_look_up(model: nn.Module, images: Tensor, format: Format, name: str, search) -> dict:
    """Seconds of one quantized forward."""
    calibrated = calibration.calibrate(model, images[:CALIBRATION])
    network = quantize.apply(calibrated, format)
    arithmetic = integer.best_arithmetic(format, torch.device("cpu"))
    lowered = runtime.active().place(integer.lower(network, arithmetic=arithmetic))
    searching = runtime.active().place(with_look_up(network, search))
    x = runtime.active().place(images[:LOOK_UP_IMAGES] / 255)
    with torch.inference_mode():
        same = (lowered(x).argmax(1) == searching(x).argmax(1)).double().mean()
        work = f"quantized ResNet_18, {LOOK_UP_IMAGES} images, {format.name}"
        ours, theirs = functools.partial(lowered, x), functools.partial(searching, x)
        return row(work, name, ours, theirs, at_least=5.0, agree=f"{same:.1%} classified alike")


def measure() -> list[dict]:
    """Both precision policies; both ways to search."""
    model, images, labels = resnet()
    rows = [against_the_float_forward(model, images, labels, precision) for precision in ("float32", "bfloat16")]
    with runtime.using("cpu", "float32"):
        for format in (INT(8), FLOAT(8, 4)):
            for name, search in {"nearest level by bisection": by_search, "all levels": by_table}.items():
                rows.append(against_look_up(model, images, format, name, search))
    return rows
