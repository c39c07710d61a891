"""Where and how tensors are computed: device, precision and memory format, random numbers, modes, progress.

One `Policy` is active in a process: `use` sets it, every loop over batches asks `active` for it, `using` changes it
for a block, and every run records it.
"""

import contextlib
import gc
import os
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rqlib.core.machine import choose_device, has_fast_bfloat16

PRECISIONS = ("auto", "float32", "bfloat16")
_active: "Policy | None" = None


@dataclass(frozen=True)
class Policy:
    """How a run computes: on which device, in which precision and memory format.

    With ``bfloat16`` the forward pass runs under autocast: convolutions and matrix products in bfloat16;
    weights, losses and BatchNorm statistics in float32. The memory format is always channels_last.
    """

    device: torch.device
    bfloat16: bool

    def place(self, tensor_or_model):
        """Move a model or a batch of images to the device; tensors of four dimensions get channels_last memory."""
        placed = tensor_or_model.to(self.device)
        if isinstance(placed, Tensor):
            return placed.contiguous(memory_format=torch.channels_last) if placed.dim() == 4 else placed
        for tensor in (*placed.parameters(), *placed.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        return placed

    def autocast(self):
        """The context in which a forward pass is computed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def record(self) -> dict:
        """The policy as plain values, for the run's record."""
        return {
            "device": str(self.device),
            "precision": "bfloat16" if self.bfloat16 else "float32",
            "memory_format": "channels_last",
            "threads": torch.get_num_threads(),
        }


def policy(device: str = "auto", precision: str = "auto") -> Policy:
    """The policy by names: device ``auto | cpu | cuda | cuda:N``, precision ``auto | float32 | bfloat16``.

    Device ``auto`` is a GPU if there is one. Precision ``auto`` is bfloat16 if the device computes it in hardware.

    Raises:
        ValueError: unknown precision.
        RuntimeError: the device does not exist on this machine.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"expected precision {' | '.join(PRECISIONS)}, got {precision!r}")
    chosen = choose_device(device)
    return Policy(chosen, has_fast_bfloat16(chosen) if precision == "auto" else precision == "bfloat16")


def use(device: str = "auto", precision: str = "auto") -> Policy:
    """Make this policy the active one of the process, and return it."""
    global _active
    _active = policy(device, precision)
    return _active


def active() -> Policy:
    """The active policy. If none was set, device and precision are ``auto``."""
    return _active or use()


@contextlib.contextmanager
def using(device: str = "auto", precision: str = "auto") -> Iterator[Policy]:
    """Make another policy the active one inside the block, for example to confirm a score in float32."""
    global _active
    before = _active
    try:
        yield use(device, precision)
    finally:
        _active = before


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 inside the block: products of 11 significant bits on a GPU, summed in float32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def exact() -> Iterator[Policy]:
    """Compute in float32 without TF32 inside the block, on the active device: for scores that are reported."""
    with using(str(active().device), "float32") as policy, tf32(False):
        yield policy


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread of the processor inside the block: for small work, whose parts would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seed_everything(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and torch (on all devices)."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng(*seeds: int) -> torch.Generator:
    """Random numbers on the CPU that depend on every one of ``seeds``, for example (seed, epoch)."""
    mixed = numpy.random.SeedSequence([seed % 2**64 for seed in seeds]).generate_state(1, numpy.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) % 2**63)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into eval mode inside the block; afterwards every module has its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def progress(items: Iterable, description: str, total: int | None = None) -> tqdm:
    """The items with a progress bar, which is not shown if ``total`` is 1; a log file gets a line every ten seconds."""
    live = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
    settings = {"leave": False, "file": sys.stderr, "mininterval": 0.1 if live else 10.0, "disable": total == 1}
    return tqdm(items, description, total, **settings)


def freeing(items: Iterable) -> Iterator:
    """The items; after the use of each one, memory that only refers to itself (graphs) is collected at once."""
    gc.freeze()  # objects that exist already are not searched again after every item
    try:
        for item in items:
            yield item
            gc.collect()
    finally:
        gc.unfreeze()
