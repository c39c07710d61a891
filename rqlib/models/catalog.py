"""Networks by name: the library's own, torchvision's, the user's. They take pixels in [0, 1] and return logits.

The docstrings of the library's own list their layers by output channels, with these abbreviations: conv3 is a 3x3
convolution, MP2 a 2x2 max-pool, MP3s2 a 3x3 max-pool of stride 2, FC linear layers, K the number of classes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import nn

from rqlib.core import runtime, vocabulary
from rqlib.core.vocabulary import ImageSpec
from rqlib.models import alexnet, inception, mobilenet, resnet, small, vgg, wide_resnet
from rqlib.models.foreign import called, foreign
from rqlib.models.weights import load_weights

MODELS: dict[str, Callable[..., nn.Module]] = {
    "AlexNet": alexnet.alexnet,
    "AlexNet_BN": partial(alexnet.alexnet, norm=True),
    "VGG_16": partial(vgg.vgg, depths=(2, 2, 3, 3, 3)),
    "VGG_19": partial(vgg.vgg, depths=(2, 2, 4, 4, 4)),
    "Inception_BN": inception.inception_bn,
    "MobileNetV2": mobilenet.mobilenet_v2,
    "ResNet_18": partial(resnet.resnet, depths=(2, 2, 2, 2)),
    "ResNet_34": partial(resnet.resnet, depths=(3, 4, 6, 3)),
    "ResNet_50": partial(resnet.resnet, depths=(3, 4, 6, 3), block=resnet.bottleneck),
    "ResNet_152": partial(resnet.resnet, depths=(3, 8, 36, 3), block=resnet.bottleneck),
    "WRN_28_4": partial(wide_resnet.wide_resnet, depth=28, factor=4),
    "WRN_28_10": partial(wide_resnet.wide_resnet, depth=28, factor=10),
    "WRN_16_8": partial(wide_resnet.wide_resnet, depth=16, factor=8),
    "VGG_16_HYDRA": vgg.hydra_vgg,
    "CNN_small": small.cnn_small,
    "CNN_large": small.cnn_large,
    "LeNet": small.lenet,
    "SmallCNN": small.small_cnn,
}
"""Name -> constructor(spec, width)."""


def build(
    name: str,
    spec: ImageSpec,
    *,
    width: float = 1.0,
    weights: str | Path | None = None,
    seed: int | None = None,
    options: Mapping | None = None,
    folder: str | Path | None = None,
) -> nn.Module:
    """A network by name, for images of ``spec``: x (B, C, H, W) in [0, 1] -> logits (B, K).

    Args:
        name: one of `MODELS`; or ``torchvision:NAME``, any classification network of torchvision; or
            ``package.module:function``, called as ``function(num_classes=K, **options)``. The normalization of
            ``spec`` is put before networks of the last two kinds (`conventions.with_pixels` makes the spec of a network
            that expects other pixels).
        width: multiplier of all channel counts; 1.0 is the published network.
        weights: file with a state dict of the network, with or without its normalization; None: random weights.
        seed: seeds all random numbers first, so that the random weights are the same each time; None does not.
        options: of the constructor, for example ``{"dropout": 0.4}``.
        folder: where ``package.module`` is searched after the working folder and before installed packages; None:
            in that of the weights.

    Raises:
        ValueError: unknown name; an option that the constructor does not have; a width that leaves no channels;
            images too small; weights of another network; a foreign network that does not return (B, K) logits,
            or a width other than 1 for it.
    """
    options = dict(options or {})
    if seed is not None:
        runtime.seed_everything(seed)
    if ":" in name:
        if width != 1.0:
            raise ValueError(f"{name}: expected width 1.0, got {width}; only the library's own networks can be scaled")
        return foreign(name, spec, options, weights=weights, folder=folder)
    if name in MODELS:
        model = called(partial(MODELS[name], spec, width), name, options)
    else:
        hint = "; or torchvision:NAME, or package.module:function"
        raise ValueError(vocabulary.did_you_mean("model", name, MODELS) + hint)
    if weights is not None:
        load_weights(model, weights)
    return model
