"""The machine that computes: its devices, whether it is fast in bfloat16, its description for records."""

import contextlib
import os
import platform

import torch


def choose_device(name: str = "auto") -> torch.device:
    """A device by name: ``auto | cpu | cuda | cuda:N``. There is never a silent fallback to another device.

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
    flags = _processor_entry("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def describe() -> dict:
    """Processor, number of cores, GPU, operating system, and the versions of Python and torch."""
    return {
        "processor": _processor_entry("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor_entry(key: str) -> str:
    """What Linux says of the first processor under this key; empty if it says nothing."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
