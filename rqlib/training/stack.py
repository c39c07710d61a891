"""Several networks of the same layers as one: for a GPU, which a small network alone does not fill."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from rqlib.core import derived, layers
from rqlib.defenses.noise import is_randomized


class Stack(nn.Module):
    """N networks side by side: images (N B, C, H, W), those of the first network first -> logits (N B, K).

    Every tensor of the networks gets a first axis of length N, and `torch.vmap` computes all of them at once: N
    convolutions become one with N groups of channels. Buffers of truth values are equal in all networks and shared.

    Args:
        networks: with equal layers, on one device. The stack holds copies of their weights.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.count = len(networks)
        self._template = [copy.deepcopy(networks[0])]  # in a list, so that its own tensors are none of the stack's
        weights, buffers = stack_module_state(list(networks))
        self.names = [*weights], [*buffers]
        self.weights = nn.ParameterList([nn.Parameter(one.detach(), one.requires_grad) for one in weights.values()])
        for number, one in enumerate(buffers.values()):
            self.register_buffer(f"buffer_{number}", one[0] if one.dtype is torch.bool else one)

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(parameters, buffers) by the names that they have in one network."""
        buffers = [getattr(self, f"buffer_{number}") for number in range(len(self.names[1]))]
        return dict(zip(self.names[0], self.weights, strict=True)), dict(zip(self.names[1], buffers, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        template = self._template[0].train(self.training)
        weights, buffers = self.tensors()
        axes = {name: None if one.dtype is torch.bool else 0 for name, one in buffers.items()}

        def one_network(weights, buffers, x):
            return functional_call(template, (weights, buffers), (x,))

        together = torch.vmap(one_network, in_dims=(0, axes, 0), randomness="different")
        return together(weights, buffers, x.unflatten(0, (self.count, -1))).flatten(0, 1)

    @torch.no_grad()
    def unstack(self, networks: Sequence[nn.Module]) -> None:
        """Give each network its weights and buffers."""
        weights, buffers = self.tensors()
        for number, network in enumerate(networks):
            for name, one in (*network.named_parameters(), *network.named_buffers()):
                found = weights[name] if name in weights else buffers[name]
                one.copy_(found if found.dtype is torch.bool else found[number])

    def penalty(self, penalties: Sequence[Callable[[nn.Module], Tensor]]) -> Tensor:
        """The sum of a penalty of each network, differentiable in the stacked weights."""
        weights, buffers = self.tensors()
        found = []
        for number, penalty in enumerate(penalties):
            one = {name: tensor[number] for name, tensor in weights.items()}
            one |= {name: tensor if tensor.dtype is torch.bool else tensor[number] for name, tensor in buffers.items()}
            renamed = {f"network.{name}": tensor for name, tensor in one.items()}
            found.append(functional_call(_Penalty(self._template[0], penalty), renamed, ()))
        return torch.stack(found).sum()


class Part(nn.Module):
    """One network of a stack as a network of its own: images (B, C, H, W) -> logits (B, K)."""

    def __init__(self, stack: Stack, number: int):
        super().__init__()
        self.stack, self.number = stack, number

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x.repeat(self.stack.count, 1, 1, 1)).chunk(self.stack.count)[self.number]


def check(stack: Stack, networks: Sequence[nn.Module], x: Tensor) -> None:
    """Raise unless the stack computes what its networks compute; those that draw noise of their own are passed over.

    Args:
        x: a few images (B, C, H, W).

    Raises:
        derived.NotEqual: names the network.
    """
    for number, network in enumerate(networks):
        if not is_randomized(network):
            derived.check(network, Part(stack, number), x, what=f"stacking network {number}")


class _Penalty(nn.Module):
    """A penalty as the output of a network, so that other weights can be put into it."""

    def __init__(self, network: nn.Module, penalty: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.network, self._penalty = network, penalty

    def forward(self) -> Tensor:
        return self._penalty(self.network)


@torch.no_grad()
def see_first(network: nn.Module, x: Tensor) -> None:
    """Let activations that start from the first batch start; the statistics of BatchNorm stay."""
    norms = [module for _, module in layers.batchnorms(network)]
    before = [{name: one.clone() for name, one in norm.named_buffers()} for norm in norms]
    mode = network.training
    network.train()(x)
    network.train(mode)
    for norm, buffers in zip(norms, before, strict=True):
        for name, one in buffers.items():
            getattr(norm, name).copy_(one)
