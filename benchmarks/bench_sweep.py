"""The sweep over 43 formats against one float forward, and against networks that search for the nearest level."""

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import row
from benchmarks.bench_rounding import by_search, by_table
from rqlib import measures, models, quantization
from rqlib.core import parametrizations, runtime
from rqlib.core.vocabulary import ImageSpec
from rqlib.quantization import FLOAT, INT, Format, integer

CALIBRATION, LOOK_UP, BATCH = 64, 8, 100


class LookUp(nn.Module):
    """A signal on the grid of a format by a search among its levels."""

    def __init__(self, format: Format, scale: Tensor, search):
        super().__init__()
        self.format, self.scale, self.search = format, scale, search

    def forward(self, x: Tensor) -> Tensor:
        pixels = (x / self.scale).movedim(1, -1)  # channels_last: the order of memory
        return self.search(self.format, pixels).movedim(-1, 1) * self.scale


def with_look_up(network: nn.Module, search) -> nn.Module:
    """A quantized network whose signals are rounded by a search; its weights are on the grid once and for all."""
    twin = parametrizations.bake(network)
    for name, point in network.quantizers.named_children():
        setattr(twin.quantizers, name, LookUp(point.format, point.scale, search))
    return twin


def resnet(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """ResNet_18 of full width with plausible BatchNorm statistics, random pictures and labels."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    model = models.build("ResNet_18", ImageSpec()).train()
    with torch.no_grad():
        model(images[:32] / 255)
    return model.eval(), images, torch.randint(0, 10, (count,))


def seconds_of(call: Callable) -> tuple[float, object]:
    """Wall time of one call, and what it gives."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def against_the_float_forward(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> dict:
    """Seconds per format of the whole sweep, calibration and similarities included, and of one float forward.

    The sweep runs once, 43 formats being repeats enough; the float forward before and after it.
    """
    forward = functools.partial(measures.logits, model, images, labels, batch_size=BATCH)
    sweep = functools.partial(quantization.sweep, model, quantization.GRID, images[:CALIBRATION], images, labels)
    with runtime.using("cpu", precision):
        forwards = [seconds_of(forward)[0] for _ in range(4)][1:]
        swept, frame = seconds_of(sweep)
        forwards += [seconds_of(forward)[0] for _ in range(3)]
    seconds, peer_seconds = swept / len(quantization.GRID), statistics.median(forwards)
    agreement = frame.set_index("format").agreement["INT_16"]
    return {
        "work": f"sweep of 43 formats, ResNet_18, {len(images)} images, {precision}: a format",
        "peer": f"one float forward, {precision}",
        "seconds": seconds,
        "peer_seconds": peer_seconds,
        "ratio": peer_seconds / seconds,
        "at_least": 1 / 1.3,
        "agree": f"INT_16 classifies {agreement:.1%} as float does",
    }


def against_look_up(model: nn.Module, images: Tensor, format: Format, name: str, search, at_least: float) -> dict:
    """Seconds of one quantized forward, and how many images both classify alike.

    Raises:
        ValueError: fewer than 7 of 8.
    """
    network = quantization.ptq(model, format, images[:CALIBRATION])
    arithmetic = integer.best_arithmetic(network, torch.device("cpu"))
    lowered, searching = integer.lower(network, arithmetic=arithmetic), with_look_up(network, search)
    lowered, searching, x = (runtime.active().place(part) for part in (lowered, searching, images[:LOOK_UP] / 255))
    with torch.inference_mode():
        same = (lowered(x).argmax(1) == searching(x).argmax(1)).double().mean()
        if same < 7 / 8:
            raise ValueError(f"{format.name}, {name}: expected 7 of 8 images classified alike, got {same:.1%}")
        work = f"quantized ResNet_18, {LOOK_UP} images, {format.name}"
        ours, theirs = functools.partial(lowered, x), functools.partial(searching, x)
        return row(work, name, ours, theirs, at_least=at_least, agree=f"{same:.1%} classified alike")


def measure(count: int = 1000) -> list[dict]:
    """Both precision policies, then both ways to search."""
    model, images, labels = resnet(count)
    rows = [against_the_float_forward(model, images, labels, precision) for precision in ("float32", "bfloat16")]
    searches = {"nearest level by bisection": (by_search, 1.0), "nearest of all levels": (by_table, 5.0)}
    with runtime.using("cpu", "float32"):
        for format in (INT(8), FLOAT(8, 4)):
            rows += [against_look_up(model, images, format, name, *search) for name, search in searches.items()]
    return rows
