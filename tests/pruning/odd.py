"""Networks in which channels pass, meet or mix in unusual ways, for color images of 16x16 pixels."""

import torch
import torch.nn.functional as F
from torch import nn


def chain(*between: nn.Module, padding: int = 1, norm: bool = False) -> nn.Module:
    """Two convolutions and a linear layer with these modules after each convolution."""
    middle = [nn.BatchNorm2d(12)] if norm else []
    first, second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=padding)
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 10)]
    return nn.Sequential(first, *middle, *between, second, *between, *head)


class Between(nn.Module):
    """Two convolutions and a linear layer with a function of the first one's output between."""

    def __init__(self, function, padding: int = 1):
        super().__init__()
        self.function = function
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=padding)
        self.head = nn.Linear(10, 10)

    def forward(self, x):
        return self.head(F.relu(self.second(self.function(self.first(x)))).mean((2, 3)))


class OwnSlopes(nn.Module):
    """An activation with one trainable slope and one shift per channel."""

    def __init__(self, channels: int, shift: float = 0.0):
        super().__init__()
        self.slope = nn.Parameter(torch.rand(channels, 1, 1))
        self.shift = nn.Parameter(torch.full((1, channels, 1, 1), shift))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x) + self.shift


class Gated(nn.Module):
    """Squeeze and excitation, then attention over pixels by the mean of all channels."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.pixels, self.head = nn.Conv2d(3, 1, 3, padding=1), nn.Linear(8, 10)

    def forward(self, image):
        x = F.silu(self.first(image))
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        x = x * torch.sigmoid(self.pixels(image))
        return self.head(F.relu(self.last(x)).mean([2, 3]))


class Excited(nn.Module):
    """Squeeze and excitation with linear layers, views and `expand_as`; then a shift per channel without a module."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3, bias=False), nn.Linear(8, 10)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 12), nn.Sigmoid())
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = self.first(x)
        batch, channels, _, _ = x.size()
        gate = self.gate(self.pool(x).view(batch, channels)).view(batch, channels, 1, 1)
        x = self.last(x * gate.expand_as(x)) + self.shift[None, :, None, None]
        return self.head(F.relu(x).mean((2, 3)))


class Repeated(nn.Module):
    """A block on a residual stream that is called three times."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
        self.block = nn.Sequential(nn.SiLU(), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(F.relu(x).amax((-1, -2)))


def perceptron() -> nn.Module:
    """Constants behind BatchNorm and before layers without bias."""
    hidden = [nn.Linear(768, 20), nn.BatchNorm1d(20), nn.Sigmoid(), nn.Linear(20, 14, bias=False), nn.LogSigmoid()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(14, 10))


def in_three_dimensions() -> nn.Module:
    """Convolutions over color as a third dimension."""
    first = [nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.SiLU()]
    last = [nn.MaxPool3d((1, 2, 2)), nn.Conv3d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10)]
    return nn.Sequential(*first, *last)


class Dense(nn.Module):
    """Each convolution reads all before it, after a BatchNorm over all of them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.third = nn.Conv2d(14, 6, 3, padding=1)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(8), nn.BatchNorm2d(14), nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        x = self.first(x)
        x = torch.cat([x, self.second(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.third(F.relu(self.norm2(x)))], 1)
        return self.head(F.relu(self.norm3(x)).mean((-2, -1)))


class Shuffled(nn.Module):
    """Halves that are split off, and channels that are shuffled, as in ShuffleNet V2."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.depth = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, 1, 1, groups=6)
        self.outer, self.last, self.head = nn.Conv2d(6, 4, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 10)

    def forward(self, x):
        one, other = self.first(x).chunk(2, dim=1)
        other = self.outer(self.depth(F.relu(self.inner(other))))
        x = torch.cat([one, other], 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.head(F.relu(self.last(x.view(batch, channels, height, width))).mean((2, 3)))


class Padded(nn.Module):
    """A skip without weights: every second pixel, and zeros for the channels that are missing."""

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.up, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.first(x))
        skip = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.relu(self.up(F.relu(self.down(x))) + skip).mean((2, 3)))


class Tied(nn.Module):
    """Two convolutions with one weight, and a linear layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.other.weight = self.one.weight
        self.into, self.twice, self.head = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.other(F.relu(self.one(F.relu(self.first(x))))))
        x = torch.tanh(self.into(x.mean((2, 3))))
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


def tied(num_classes: int) -> nn.Module:
    return Tied()


class TwoNames(nn.Module):
    """A convolution that is registered under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.features = nn.Sequential(self.stem, nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Tokens(nn.Module):
    """A convolution whose pixels become tokens, and linear layers on tokens."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, stride=4)
        self.wide, self.narrow, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 10)

    def forward(self, x):
        tokens = self.first(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.narrow(F.gelu(self.wide(tokens)))
        return self.head(tokens.mean(1))


class Returning(nn.Module):
    """The logits pass an activation and a softmax."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)

    def forward(self, x):
        return F.log_softmax(F.relu(self.last(F.relu(self.first(x))).amax((2, 3))), dim=1)
