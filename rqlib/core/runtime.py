"""Where and how tensors are computed: device, seeds, precision and memory format, modes, progress.

The whole precision policy is one value, `Policy`. One is active in a process: `use` sets it, every
loop over batches asks `active` for it, `using` changes it for a block, every run records it.
"""

import contextlib
import gc
import os
import platform
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn
from tqdm import tqdm

PRECISIONS = ("auto", "float32", "bfloat16")
_active: "Policy | None" = None


@dataclass(frozen=True)
class Policy:
    """How a run computes: on which device, in which precision and memory format.

    With ``bfloat16`` the forward runs under autocast: convolutions and matrix products in bfloat16,
    weights, losses and BatchNorm statistics in float32. Memory is channels_last throughout.
    """

    device: torch.device
    bfloat16: bool

    def place(self, tensor_or_model):
        """Move a model or a batch of images to the device, channels_last."""
        if isinstance(tensor_or_model, Tensor) and tensor_or_model.dim() != 4:
            return tensor_or_model.to(self.device)
        return tensor_or_model.to(self.device, memory_format=torch.channels_last)

    def autocast(self):
        """Context in which a forward pass is computed."""
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

    ``auto`` takes a GPU where there is one, and bfloat16 where the device computes it in hardware.

    Raises:
        ValueError: unknown precision.
        RuntimeError: a GPU was asked for and none is there.
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
    """The active policy; ``auto`` where none was set."""
    return _active or use()


@contextlib.contextmanager
def using(device: str = "auto", precision: str = "auto") -> Iterator[Policy]:
    """Make another policy the active one inside the block (say: confirm a score in float32)."""
    global _active
    before = _active
    try:
        yield use(device, precision)
    finally:
        _active = before


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid, inside the block, products of 11 significant bits on a GPU (TF32); sums stay float32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def exact() -> Iterator[Policy]:
    """Compute in float32 inside the block, products too (no TF32), on the active device: for scores that count."""
    with using(str(active().device), "float32") as policy, tf32(False):
        yield policy


def choose_device(name: str = "auto") -> torch.device:
    """A device by name; never a silent fallback.

    Raises:
        RuntimeError: the device does not exist on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RuntimeError(f"expected device auto, cpu, cuda or cuda:N, got {name!r}") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RuntimeError(
            f"device {name!r} was asked for, but this machine has {count} CUDA devices; use device: auto or cpu"
        )
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (AVX-512 BF16, AMX, or CUDA 8.0 and later)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = _processor_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _processor_flags() -> frozenset[str]:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng(*seeds: int) -> torch.Generator:
    """A generator of random numbers on the CPU whose stream depends on every one of ``seeds`` (say: seed, epoch)."""
    mixed = numpy.random.SeedSequence([seed % 2**64 for seed in seeds]).generate_state(1, numpy.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) % 2**63)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Run the block with the model in eval mode; afterwards every module has its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def progress(items: Iterable, description: str, total: int | None = None) -> tqdm:
    """A progress bar: live on a terminal and in Jupyter, a line every ten seconds in a log file; none for one item."""
    live = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
    settings = {"leave": False, "file": sys.stderr, "mininterval": 0.1 if live else 10.0, "disable": total == 1}
    return tqdm(items, description, total, **settings)


def freeing(items: Iterable) -> Iterator:
    """The items; what the use of each leaves behind is freed: graphs refer to themselves and wait for the collector."""
    gc.freeze()  # what is there already is not looked through every time
    try:
        for item in items:
            yield item
            gc.collect()
    finally:
        gc.unfreeze()


def describe() -> dict:
    """This machine, for the run's record: processor, cores, GPU, Python and torch."""
    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
