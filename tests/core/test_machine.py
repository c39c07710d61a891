import pytest
import torch

from rqlib.core import machine


@pytest.mark.parametrize(("flags", "fast"), [("fma avx512_bf16", True), ("amx_bf16", True), ("fma avx2", False)])
def test_bfloat16_is_fast_if_the_processor_says_so(monkeypatch, flags, fast):
    monkeypatch.setattr(machine, "_processor_entry", {"flags": flags}.__getitem__)
    assert machine.has_fast_bfloat16(torch.device("cpu")) == fast


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tpu9", "expected device auto, cpu, cuda or cuda:N, got 'tpu9'"),
        ("cuda:99", "this machine has .* CUDA devices; use device: auto or cpu"),
    ],
)
def test_a_device_that_does_not_exist_is_refused(name, words):
    with pytest.raises(RuntimeError, match=words):
        machine.choose_device(name)
