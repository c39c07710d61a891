"""torchvision imports beside a torch for which its compiled part was not built, and beside one for which it was."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

from rqlib.core import torchvision_guard


def test_imports_in_a_fresh_process_where_warnings_are_errors_and_an_operator_is_declared_already():
    code = """
        import torch
        from rqlib.core import torchvision_guard
        if not torchvision_guard._loads(torchvision_guard._compiled_parts()):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        module = torchvision_guard.torchvision()
        assert module.datasets.MNIST
        import torchvision.transforms.v2
        assert torchvision is module
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_nothing_is_declared_where_the_compiled_part_loads(monkeypatch):
    torchvision_guard.torchvision()  # the process then has all that an import needs
    monkeypatch.setattr(torchvision_guard, "_loads", lambda libraries: True)
    monkeypatch.setattr(
        torchvision_guard, "_declare_operators", lambda: pytest.fail("declared beside a loaded library")
    )
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
