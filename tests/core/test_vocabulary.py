import dataclasses

import pytest
import torch

from rqlib.core.vocabulary import ImageSpec, check_pixels, did_you_mean


def test_shape_and_tuples():
    spec = ImageSpec(channels=1, height=28, width=20, mean=[0.1], std=[0.3])
    assert spec.shape == (1, 28, 20)
    assert spec.mean == (0.1,)
    assert ImageSpec(**dataclasses.asdict(spec)) == spec


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ImageSpec(num_classes=0), "positive"),
        (lambda: ImageSpec(channels=1), "mean and std of 1 channels"),
        (lambda: ImageSpec(std=(0.1, 0.0, 0.1)), "std > 0"),
        (lambda: check_pixels(torch.tensor([0.5, 1.1]), "x", nan="none"), r"x in \[0, 1\], got \[0.5, 1.1\]; normali"),
        (
            lambda: check_pixels(torch.tensor([0.5, torch.nan]), "x", nan="x holds NaN"),
            r"got \[nan, nan\]; x holds NaN",
        ),
    ],
)
def test_faulty_specs_and_pixels_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_pixels_may_be_off_by_rounding():
    check_pixels(torch.tensor([-1e-7, 1 + 1e-7]), "x", nan="none")


def test_did_you_mean_names_the_nearest_and_all():
    text = did_you_mean("network", "ResNet18", ["AlexNet", "ResNet_18"])
    assert text == "unknown network 'ResNet18' (did you mean 'ResNet_18'?); known: AlexNet, ResNet_18"
    assert "did you mean" not in did_you_mean("network", "zzz", ["AlexNet"])
