"""Probe: the arrays of a learned importance, and how they score a token.

For each layer and KV head a linear probe on the token's features, and, for the layer's heads together, a small net
whose answer is added (``units`` 0: none). All but the age is computed once for a token; the age is added when the cache
asks. Everything is a product of tensors on the device of the cache.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.features import AGES, NORMS, RECEIVED, age_features, received_features

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Probe", "blank_probe"]


@dataclass(frozen=True, eq=False)
class Probe:
    """Float32 arrays; L layers, H KV heads, E width of the model, D of a head, M hidden units.

    The hidden state is standardised by ``mean`` and ``scale`` of its layer before it meets ``weight`` and ``inner``.
    """

    mean: "Tensor"  # [L, E]
    scale: "Tensor"  # [L, E]
    weight: "Tensor"  # [L, H, E]
    norms: "Tensor"  # [L, H, 4]
    ages: "Tensor"  # [L, H, 5]
    bias: "Tensor"  # [L, H]
    early: "Tensor"  # [L, H], for the logarithm of the attention in a token's first steps; zeros without delay
    received: "Tensor"  # [L, H, 3], for the attention received so far; zeros where it is not looked at
    inner: "Tensor"  # [L, E + 4 H, M]
    inner_bias: "Tensor"  # [L, M]
    outer: "Tensor"  # [L, M, H]
    factor: "Tensor"  # [L, H, D, D], see ``norm_features``

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, KV heads, width."""
        layers, heads, width = self.weight.shape
        return layers, heads, width

    def arrays(self) -> dict[str, "Tensor"]:
        """Return the arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, device: Any) -> "Probe":
        """Return the probe on a device."""
        return Probe(**{name: array.to(device) for name, array in self.arrays().items()})

    def token(self, layer: int, hidden: "Tensor", norms: "Tensor") -> "Tensor":
        """Return all of the score but its age, [B, H, T]; ``hidden`` [B, T, E], ``norms`` [B, H, T, 4]."""
        import torch

        weight, bias = self.folded(layer)
        linear = torch.nn.functional.linear(hidden.float(), weight, bias)  # [B, T, H]
        score = linear.mT + (norms @ self.norms[layer][..., None])[..., 0]
        return score + self.net(layer, hidden, norms) if self.inner.shape[-1] else score

    def folded(self, layer: int) -> "tuple[Tensor, Tensor]":
        """Return weight [H, E] and bias [H] for hidden states as they are, not standardised."""
        weight = self.weight[layer] * self.scale[layer]
        return weight, self.bias[layer] - weight @ self.mean[layer]

    def net(self, layer: int, hidden: "Tensor", norms: "Tensor") -> "Tensor":
        """Return what the hidden layer adds, [B, H, T]."""
        import torch

        x = (hidden.float() - self.mean[layer]) * self.scale[layer]  # [B, T, E]
        batch, heads, tokens, _ = norms.shape
        flat = norms.permute(0, 2, 1, 3).reshape(batch, tokens, heads * len(NORMS))
        inside = torch.cat([x, flat], dim=-1) @ self.inner[layer] + self.inner_bias[layer]
        return (torch.nn.functional.gelu(inside) @ self.outer[layer]).mT

    def age(self, layer: int, heads: Any, age: "Tensor", longest: int) -> "Tensor":
        """Return the part that depends on the age, of the shape of ``age`` [B, heads, S]."""
        return (age_features(age, longest) @ self.ages[layer, heads, :, None])[..., 0]

    def watched(self, layer: int, heads: Any, received: "Tensor", age: "Tensor") -> "Tensor":
        """Return the part of the attention ``received`` [B, heads, S, 3], of the shape of ``age`` [B, heads, S]."""
        return (received_features(received, age) @ self.received[layer, heads, :, None])[..., 0]

    def age_table(self, longest: int) -> "Tensor":
        """Return what each age says, [L, H, longest + 1]; the last stands for all older ones."""
        import torch

        ages = age_features(torch.arange(longest + 1, device=self.ages.device), longest)  # [longest + 1, 5]
        return self.ages @ ages.T

    def scaled(self, factor: "Tensor") -> "Probe":
        """Return the probe whose scores are multiplied by ``factor`` [L, H]."""
        return replace(
            self,
            weight=self.weight * factor[..., None],
            norms=self.norms * factor[..., None],
            ages=self.ages * factor[..., None],
            bias=self.bias * factor,
            early=self.early * factor,
            received=self.received * factor[..., None],
            outer=self.outer * factor[:, None, :],
        )


def blank_probe(factor: "Tensor", width: int, units: int = 0, seed: int = 0) -> Probe:
    """Return a probe that scores every token 0; the net's first layer is random, so that it can learn."""
    import torch

    if units < 0:
        raise KvpredictError(f"a probe cannot have {units} hidden units: give 0 or more")
    layers, heads, _, _ = factor.shape
    inputs = width + heads * len(NORMS)
    generator = torch.Generator().manual_seed(seed)
    return Probe(
        mean=torch.zeros(layers, width),
        scale=torch.ones(layers, width),
        weight=torch.zeros(layers, heads, width),
        norms=torch.zeros(layers, heads, len(NORMS)),
        ages=torch.zeros(layers, heads, len(AGES)),
        bias=torch.zeros(layers, heads),
        early=torch.zeros(layers, heads),
        received=torch.zeros(layers, heads, len(RECEIVED)),
        inner=torch.randn(layers, inputs, units, generator=generator) * inputs**-0.5,
        inner_bias=torch.zeros(layers, units),
        outer=torch.zeros(layers, units, heads),
        factor=factor.float().cpu(),
    )
