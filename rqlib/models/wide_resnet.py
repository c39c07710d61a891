"""Wide residual networks with pre-activation (arXiv 1605.07146)."""

from torch import Tensor, nn

from rqlib.core.vocabulary import ImageSpec
from rqlib.models.blocks import network, pointwise, pooled_classifier, scaled, sequence


class PreActivation(nn.Module):
    """BatchNorm, ReLU, conv3, BatchNorm, ReLU, dropout, conv3, to which a shortcut is added.

    The shortcut is x if the shape stays the same, else a 1x1 convolution of the first ReLU's output.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.same = stride == 1 and inputs == outputs
        self.activate = _activate(inputs)
        self.body = sequence(
            conv1=nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            activate=_activate(outputs),
            dropout=nn.Dropout(dropout),
            conv2=nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        self.shortcut = nn.Identity() if self.same else pointwise(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        return self.body(activated) + self.shortcut(x if self.same else activated)


def wide_resnet(spec: ImageSpec, width: float = 1.0, *, depth: int, factor: int, dropout: float = 0.0) -> nn.Sequential:
    """conv3 16, three groups of (depth - 4) / 6 blocks on 16, 32, 64 times ``factor`` channels, mean, FC K."""
    inputs = scaled(16, width)
    parts = {"stem": nn.Conv2d(spec.channels, inputs, 3, 1, 1, bias=False)}
    for index in range(3):
        group, outputs = nn.Sequential(), scaled(16 * 2**index * factor, width)
        for repeat in range((depth - 4) // 6):
            stride = 2 if index > 0 and repeat == 0 else 1
            group.append(PreActivation(inputs, outputs, stride, dropout))
            inputs = outputs
        parts[f"group{index + 1}"] = group
    return network(spec, **parts, activate=_activate(inputs), classifier=pooled_classifier(inputs, spec))


def _activate(channels: int) -> nn.Sequential:
    return sequence(norm=nn.BatchNorm2d(channels), relu=nn.ReLU())
