import pytest
import torch
from torch import nn

from rqlib import defenses, models, robustness
from rqlib.core import layers
from tests import robust_networks


def test_the_last_common_convolution_of_one_image():
    image, _ = robust_networks.pictures(1)
    plain = models.build("CNN_small", robust_networks.SPEC).eval()
    quiet = defenses.add_noise(plain, 0.0).eval()
    found = robustness.convolution_outputs({"plain": plain, "RSE": quiet}, image[0])
    last = [name for name, one in layers.weighted_layers(plain) if isinstance(one, nn.Conv2d)][-1]
    expected = layers.outputs(plain, [last], image / 255)[last][0]
    assert list(found) == ["plain", "RSE"]
    for maps in found.values():
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
    noisy = robustness.convolution_outputs({"RSE": defenses.add_noise(plain, 0.2).eval()}, image[0])["RSE"]
    assert (noisy - expected).abs().max() > 0.01


def test_networks_without_a_common_convolution_are_named():
    image, _ = robust_networks.pictures(1)
    networks = {"a": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "b": robust_networks.untrained()}
    with pytest.raises(ValueError, match="a convolution of the same name, got a, b"):
        robustness.convolution_outputs(networks, image[0])
