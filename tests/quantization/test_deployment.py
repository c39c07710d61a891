"""Exported files run in onnxruntime with and without graph optimization."""

import importlib

import onnx
import pytest
import torch
from torch import nn

from rqlib import measures, quantization
from rqlib.quantization import deployment, integer, onnx_builder
from tests import quantized_networks


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_optimizer_takes_zero_points(tmp_path, bits):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Flatten()]
    model, pictures = nn.Sequential(*parts, nn.Linear(200, 5)).eval(), quantized_networks.images(40, size=16)
    network = quantization.ptq(model, f"INT_{bits}", pictures, nonnegative="zero_point")
    assert any(point.format.zero_point for point in network.quantizers.children())
    labels = model(pictures / 255).argmax(1)
    rows = quantization.deploy(network, tmp_path / "x.onnx", pictures, labels).set_index("setting")
    assert rows.deployed_accuracy.notna().all()
    assert rows.differing["optimization off"] == 0


@pytest.mark.parametrize("format", ["INT_8", "INT_4"])
def test_without_optimization_nothing_differs(trained, digits, tmp_path, format):
    images, labels = digits.test.take(200)
    network = quantization.ptq(trained, format, digits.calibration(64))
    found = quantization.deploy(network, tmp_path / "x.onnx", images, labels, facts={"ranges": "mse"})
    rows = found.set_index("setting")
    assert rows.index.tolist() == list(deployment.SETTINGS)
    here = measures.accuracy(integer.lower(network, arithmetic="float32"), images, labels)
    assert rows.accuracy.tolist() == [pytest.approx(here)] * 3
    off = rows.loc["optimization off"]
    assert (off.deployed_accuracy, off.differing, off.largest_difference) == (off.accuracy, 0, 0)
    said = {prop.key: prop.value for prop in onnx.load(tmp_path / "x.onnx").metadata_props}
    assert (said["ranges"], said["accuracy_images"]) == ("mse", "200")
    assert float(said["accuracy"]) == pytest.approx(here)
    again = quantization.deployed(tmp_path / "x.onnx", network, images, labels)
    assert again.equals(found)


def test_differences_are_counted_in_steps(tmp_path):
    model, pictures, labels = quantized_networks.small()
    network, other = (quantization.ptq(model, format, pictures) for format in ("INT_8", "INT_3"))
    quantization.export(other, tmp_path / "x.onnx")
    found = quantization.deployed(tmp_path / "x.onnx", network, pictures, labels).iloc[0]
    lowered = (integer.lower(each, arithmetic="float32")(pictures / 255) for each in (network, other))
    ours, theirs = lowered
    *_, last = integer.lower(network).quantizers.children()
    assert found.differing == (ours.argmax(1) != theirs.argmax(1)).double().mean().item()
    assert found.largest_difference == pytest.approx(
        ((ours - theirs).abs().max() / last.value_of_code).item(), rel=1e-4
    )


def test_a_float_network_differs_by_rounding_only(tmp_path):
    model, pictures, labels = quantized_networks.small()
    found = quantization.deploy(model, tmp_path / "x.onnx", pictures, labels)
    assert found.differing.tolist() == [0, 0, 0]
    assert (found.largest_difference < 1e-4).all()


def test_a_network_without_an_onnx_form_gives_a_warning_and_no_rows(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LogSigmoid(), nn.Flatten()).eval()
    pictures = quantized_networks.images(3, size=8)
    with pytest.warns(UserWarning, match="no ONNX file: operation _1 has no ONNX form here: LogSigmoid"):
        found = quantization.deploy(model, tmp_path / "x.onnx", pictures, torch.zeros(3, dtype=torch.int64))
    assert found.columns.tolist() == deployment.COLUMNS
    assert found.empty
    assert quantization.deploy(model, tmp_path / "x.onnx", pictures[:0], torch.zeros(0)).empty
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_library_is_named_with_the_remedy(monkeypatch, tmp_path, missing):
    real = importlib.import_module

    def absent(name, *rest):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(onnx_builder.importlib, "import_module", absent)
    model, pictures, labels = quantized_networks.small()
    with pytest.raises(ModuleNotFoundError, match=rf"{missing} is not installed; .* pip install 'rqlib\[onnx\]'"):
        quantization.deploy(model, tmp_path / "x.onnx", pictures, labels)
