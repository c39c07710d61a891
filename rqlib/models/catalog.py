"""Networks by name: the library's own, torchvision's, the user's. They take pixels in [0, 1] and return logits.

The docstrings of the library's own list their layers by output channels, with these abbreviations: conv3 is a 3x3
convolution, MP2 a 2x2 max-pool, MP3s2 a 3x3 max-pool of stride 2, FC linear layers, K the number of classes.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from rqlib.core import runtime, torchvision_guard, vocabulary
from rqlib.core.vocabulary import ImageSpec
from rqlib.models import alexnet, inception, mobilenet, resnet, small, vgg, wide_resnet
from rqlib.models.blocks import Normalize, sequence
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
    **options,
) -> nn.Module:
    """A network by name, for images of ``spec``: x (B, C, H, W) in [0, 1] -> logits (B, K).

    Args:
        name: one of `MODELS`; or ``torchvision:NAME``, any classification network of torchvision; or
            ``package.module:function``, called as ``function(num_classes=K)``, which returns a network for
            normalized images. The normalization of ``spec`` is put before networks of the last two kinds.
        width: multiplier of all channel counts; 1.0 is the published network.
        weights: file with a state dict of the network, with or without its normalization; None: random weights.
        seed: seeds all random numbers first, so that the random weights are the same each time; None does not.
        options: of the constructor, for example ``dropout=0.4``.

    Raises:
        ValueError: unknown name; a width that leaves no channels; images too small; weights of another
            network; a foreign network that does not return (B, K) logits, or a width other than 1 for it.
    """
    if seed is not None:
        runtime.seed_everything(seed)
    if ":" in name:
        model = _foreign(name, spec, width, options)
    elif name in MODELS:
        model = MODELS[name](spec, width, **options)
    else:
        hint = "; or torchvision:NAME, or package.module:function"
        raise ValueError(vocabulary.did_you_mean("model", name, MODELS) + hint)
    if weights is not None:
        load_weights(model, weights)
    return model


def _foreign(name: str, spec: ImageSpec, width: float, options: dict) -> nn.Module:
    if width != 1.0:
        raise ValueError(f"{name}: expected width 1.0, got {width}; only the library's own networks can be scaled")
    source, _, function = name.partition(":")
    make = _torchvision if source == "torchvision" else partial(_imported, source)
    network = make(function, num_classes=spec.num_classes, **options)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name}: expected a torch.nn.Module, got {type(network).__name__}")
    model = sequence(normalize=Normalize(spec), network=network)
    _check_logits(name, model, spec)
    return model


def _torchvision(name: str, **options) -> nn.Module:
    """A classification network of torchvision with random weights and without auxiliary outputs."""
    catalog = torchvision_guard.torchvision().models
    known = catalog.list_models(module=catalog)
    if name not in known:
        raise ValueError(vocabulary.did_you_mean("torchvision model", name, known))
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True} | options
    return catalog.get_model(name, weights=None, **options)


def _imported(module: str, function: str, **options) -> nn.Module:
    """Import the module and return ``module.function(**options)``; errors say what is missing."""
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{module}:{function} is not there: {error}; expected package.module:function") from error
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ValueError(f"{module}:{function} must accept {function}({given}): {error}") from error
    return make(**options)


def _check_logits(name: str, model: nn.Module, spec: ImageSpec) -> None:
    """Raise unless the network returns (2, K) logits for two black images."""
    try:
        with runtime.evaluating(model), torch.no_grad():
            logits = model(torch.zeros(2, *spec.shape))
    except Exception as error:
        raise ValueError(f"{name} fails on images of shape {spec.shape}: {error}") from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, spec.num_classes):
        raise ValueError(f"{name}: expected logits (2, {spec.num_classes}) for two images, got {shape}")
