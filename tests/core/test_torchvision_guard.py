"""torchvision imports beside a torch for which its compiled part was not built, and beside one for which it was."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest
import torch

from rqlib.core import torchvision_guard


def run_fresh(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_gives_the_module_with_data_sets_and_networks():
    module = torchvision_guard.torchvision()
    assert module.__name__ == "torchvision"
    assert module.datasets.CIFAR10.__name__ == "CIFAR10"
    x = torch.rand(2, 3, 32, 32)
    assert module.models.mobilenet_v2(num_classes=7)(x).shape == (2, 7)


def test_asking_twice_gives_the_same_module():
    assert torchvision_guard.torchvision() is torchvision_guard.torchvision() is sys.modules["torchvision"]


def test_imports_in_a_fresh_process_where_warnings_are_errors():
    done = run_fresh("""
        from rqlib.core import torchvision_guard
        module = torchvision_guard.torchvision()
        import torchvision.transforms.v2
        assert torchvision is module
    """)
    assert done.returncode == 0, done.stderr


def test_importing_torchvision_again_by_its_own_name_works():
    torchvision_guard.torchvision()
    import torchvision.datasets

    assert torchvision.datasets.ImageFolder


def test_operators_declared_by_someone_else_are_left_alone():
    done = run_fresh("""
        import torch
        from rqlib.core import torchvision_guard
        if not torchvision_guard._loads(torchvision_guard._compiled_parts()):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        assert torchvision_guard.torchvision().datasets.MNIST
    """)
    assert done.returncode == 0, done.stderr


def test_nothing_is_declared_where_the_compiled_part_loads(monkeypatch):
    monkeypatch.setattr(torchvision_guard, "_loads", lambda libraries: True)
    monkeypatch.setattr(torchvision_guard, "_declare", lambda schemas: pytest.fail("declared beside a loaded library"))
    assert torchvision_guard.torchvision.__wrapped__().__name__ == "torchvision"


def test_a_library_that_is_none_does_not_load(tmp_path):
    foreign = tmp_path / "_C.so"
    foreign.write_bytes(b"not a library")
    assert not torchvision_guard._loads([foreign])
    assert not torchvision_guard._loads([])


def test_absent_torchvision_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="torchvision is not installed.*pip install torchvision"):
        torchvision_guard.torchvision.__wrapped__()
