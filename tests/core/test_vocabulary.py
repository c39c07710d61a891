import dataclasses

import pytest

from rqlib.core.vocabulary import ImageSpec, did_you_mean


def test_shape_and_tuples():
    spec = ImageSpec(channels=1, height=28, width=20, mean=[0.1], std=[0.3])
    assert spec.shape == (1, 28, 20)
    assert spec.mean == (0.1,)
    assert ImageSpec(**dataclasses.asdict(spec)) == spec


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "positive"),
        ({"channels": 1}, "mean and std of 1 channels"),
        ({"std": (0.1, 0.0, 0.1)}, "std > 0"),
    ],
)
def test_bad_spec(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageSpec(**settings)


def test_did_you_mean_names_the_nearest_and_all():
    text = did_you_mean("network", "ResNet18", ["AlexNet", "ResNet_18"])
    assert text == "unknown network 'ResNet18' (did you mean 'ResNet_18'?); known: AlexNet, ResNet_18"
    assert "did you mean" not in did_you_mean("network", "zzz", ["AlexNet"])
