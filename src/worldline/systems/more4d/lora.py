"""Low-rank additions to linear layers, in the published layout: W += weight (alpha / rank) up @ down  (spec 4.6).

    lora_unet__blocks_0_self_attn_q.lora_down.weight   [rank, in]
    lora_unet__blocks_0_self_attn_q.lora_up.weight     [out, rank]
    lora_unet__blocks_0_self_attn_q.alpha              scalar

The double underscore stands where a prefix would be (the root module has no name); dots became underscores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldline.systems.more4d.published import published_transformer_key

PREFIX = "lora_unet__"
SHIPPED_WEIGHT = 0.55
"""With which the published ViSM additions (rank 128, alpha 64) are merged: 0.275 in all."""


def layer_names(model: nn.Module) -> dict[str, str]:
    """Name of every linear layer of a transformer by its name in a LoRA file."""
    names = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith("omnimae_extractor."):
            published = published_transformer_key(f"{name}.weight").removesuffix(".weight")
            names[PREFIX + published.replace(".", "_")] = name
    return names


def factor(rank: int, alpha: float | None, missing: bool = False) -> float:
    """Alpha / rank; an alpha of None or 0 means alpha = rank, and an alpha `missing` in a file to merge means 1."""
    return 1.0 if missing or not alpha else alpha / rank


class LoRA(nn.Module):
    """One addition: up(down(x)) * alpha / rank; zero at first because `up` is."""

    alpha: Tensor

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float | None) -> None:
        super().__init__()
        self.lora_down, self.lora_up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self.register_buffer("alpha", torch.tensor(float(alpha or rank)))
        self.scale = factor(rank, alpha)

    def forward(self, x: Float[Tensor, "*any I"]) -> Float[Tensor, "*any O"]:
        """What is added to the layer's answer."""
        return self.lora_up(self.lora_down(x)) * self.scale


class LoRALinear(nn.Module):
    """A frozen linear layer with an addition beside it."""

    def __init__(self, base: nn.Linear, addition: LoRA, weight: float) -> None:
        super().__init__()
        self.base, self.addition, self.multiplier = base, addition, weight

    @property
    def weight(self) -> Tensor:
        """Of the frozen layer; others ask it for its dtype."""
        return self.base.weight

    def forward(self, x: Float[Tensor, "*any I"]) -> Float[Tensor, "*any O"]:
        """Both together."""
        return self.base(x) + self.multiplier * self.addition(x)


def attach(model: nn.Module, rank: int, alpha: float | None = None, weight: float = 1.0) -> list[str]:
    """Freeze a transformer and put an addition beside every linear layer; returns the layers' names in a file."""
    model.requires_grad_(False)
    names = layer_names(model)
    for name in names.values():
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        like = base.weight
        addition = LoRA(base.in_features, base.out_features, rank, alpha).to(like.device, like.dtype)
        _replace(model, name, LoRALinear(base, addition, weight))
    return list(names)


def detach(model: nn.Module) -> None:
    """Take all additions off again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            _replace(model, name, module.base)


def state(model: nn.Module) -> dict[str, Tensor]:
    """The additions of a model in the published layout."""
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            published = published_transformer_key(f"{name}.weight").removesuffix(".weight")
            for key, value in module.addition.state_dict().items():
                out[f"{PREFIX}{published.replace('.', '_')}.{key}"] = value
    return out


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill the additions attached to a model from a file's tensors.

    Raises:
        ValueError: the file lacks an addition, or has one for a layer that is not there.
    """
    known = state(model)
    different = sorted(set(known) ^ set(tensors))
    if different:
        raise ValueError(f"The LoRA file does not fit this transformer: {different[0]} is in one of them only.")
    with torch.no_grad():
        for key, value in known.items():
            value.copy_(tensors[key])
    for module in model.modules():
        if isinstance(module, LoRALinear):
            addition = module.addition
            addition.scale = factor(addition.lora_down.out_features, float(addition.alpha))


def _additions(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[tuple[nn.Linear, Tensor]]:
    names = layer_names(model)
    stems = {key.rsplit(".", 1)[0] if key.endswith(".alpha") else key.rsplit(".", 2)[0] for key in tensors}
    unknown = sorted(stems - set(names))
    if unknown:
        raise ValueError(f"The LoRA file is for another transformer: there is no layer {unknown[0]!r}.")
    for stem in sorted(stems):
        up, down = tensors[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_down.weight"]
        alpha = tensors.get(f"{stem}.alpha")
        scale = factor(len(down), None if alpha is None else float(alpha), missing=alpha is None)
        layer = model.get_submodule(names[stem])
        assert isinstance(layer, nn.Linear)
        yield layer, scale * (up.double() @ down.double())


@torch.no_grad()
def merge(model: nn.Module, tensors: Mapping[str, Tensor], weight: float = 1.0) -> None:
    """Add a file's additions to the weights of a transformer; computed in float64, one layer at a time.

    Raises:
        ValueError: the file names a layer that is not there.
    """
    for layer, addition in _additions(model, tensors):
        added = layer.weight.double() + weight * addition.to(layer.weight.device)
        layer.weight.copy_(added.to(layer.weight.dtype))


def unmerge(model: nn.Module, tensors: Mapping[str, Tensor], weight: float = 1.0) -> None:
    """Take merged additions out again (up to rounding of the weights' precision)."""
    merge(model, tensors, -weight)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module)
