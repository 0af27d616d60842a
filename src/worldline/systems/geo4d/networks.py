"""All of Geo4D's networks together: U-Net, autoencoders and the constant context they were trained with."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldline.systems.geo4d.attention import KeysValues, SpatialTransformer
from worldline.systems.geo4d.config import Geo4DConfig, Modality
from worldline.systems.geo4d.unet import Geo4DUNet
from worldline.systems.geo4d.vae import Geo4DVae


class Geo4D(nn.Module):
    """The model.

    Attributes:
        config: its sizes; `scaling_factor` of `config.vae` holds for the latents of all modalities.
        unet: predicts v of all modalities.
        vae: encodes every modality; decodes rays and disparity; encodes the video unless there is `condition_vae`.
        point_vae: decodes points and their uncertainty.
        condition_vae: encodes the video, or None.
        context: [tokens, D] what the U-Net attends to, the same for every video.
    """

    def __init__(self, config: Geo4DConfig, *, encoders: bool = True):
        """Build with random weights; `encoders=False` leaves out what only training needs."""
        super().__init__()
        self.config = config
        self.unet = Geo4DUNet(config.unet)
        self.vae, self.point_vae = Geo4DVae(config.vae), Geo4DVae(config.point_vae)
        self.condition_vae = None if config.condition_vae is None else Geo4DVae(config.condition_vae)
        self.context = nn.Parameter(torch.randn(config.context_tokens, config.unet.context_dim))
        self._prepared: tuple[tuple[object, ...], list[KeysValues]] | None = None
        # Points are encoded by `vae`: the published point autoencoder keeps its encoder (paper section 3.2).
        _drop(self.point_vae, "encoder", "quant_conv")
        if self.condition_vae is not None:
            _drop(self.condition_vae, "decoder", "post_quant_conv")
            if not encoders:
                _drop(self.vae, "encoder", "quant_conv")

    @property
    def seeing(self) -> Geo4DVae:
        """The autoencoder that encodes the video."""
        return self.vae if self.condition_vae is None else self.condition_vae

    def start_points_from_vae(self) -> None:
        """Let the decoder of points begin as that of all other maps (before it is fine-tuned, paper eq. 3)."""
        state = {k: v for k, v in self.vae.state_dict().items() if k.startswith(("decoder.", "post_quant_conv."))}
        self.point_vae.load_state_dict(state, strict=False)

    @torch.no_grad()
    def prepared_context(self, device: torch.device) -> list[KeysValues]:
        """Keys and values of the context in every layer that attends to it: made once, until weights change.

        The context is the same for every video (spec 0.1), so this is a constant of the checkpoint. The U-Net must be
        on `device`.
        """
        layers = [layer.cross_attention for layer in self.unet.modules() if isinstance(layer, SpatialTransformer)]
        used = [self.context, *(weight for layer in layers for weight in layer.parameters())]
        dtype = self.unet.dtype
        key = (device, dtype, *((id(weight), 0 if weight.is_inference() else weight._version) for weight in used))
        if self._prepared is None or self._prepared[0] != key:
            context = self.context[None].to(device, dtype)
            self._prepared = key, self.unet.context_cache(context, self.config.window)
        return self._prepared[1]

    def split(self, latents: Float[Tensor, "B C T h w"]) -> dict[Modality, Float[Tensor, "B Z T h w"]]:
        """Latents of each modality."""
        parts = latents.split(self.config.latent_channels, dim=1)
        return dict(zip(self.config.modalities, parts, strict=True))


def build(config: Geo4DConfig, *, meta: bool = False, encoders: bool = True) -> Geo4D:
    """The networks with random weights, or without memory on the meta device."""
    with torch.device("meta" if meta else "cpu"):
        return Geo4D(config, encoders=encoders)


@torch.no_grad()
def widened(model: Geo4D, modalities: tuple[Modality, ...]) -> Geo4D:
    """The same model with more modalities, as the progressive training does it (paper section 3.3).

    What it says about the old modalities does not change: new columns of the first convolution and new rows of the
    last one are zero. The random numbers drawn do not depend on the old modalities.

    Raises:
        ValueError: a modality would be lost.
    """
    old, config = model.config, model.config.with_modalities(modalities)
    if not set(old.modalities) <= set(modalities):
        raise ValueError(f"A model of {', '.join(old.modalities)} cannot be widened to {', '.join(modalities)}.")
    size, wide = config.latent_channels, Geo4D(config, encoders=hasattr(model.vae, "encoder"))
    rows = [size * modalities.index(name) + channel for name in old.modalities for channel in range(size)]
    video = range(config.unet.out_channels, config.unet.in_channels)
    state = model.state_dict()
    entrance = "unet.input_blocks.0.0.weight"
    first = torch.zeros_like(wide.state_dict()[entrance])
    first[:, [*rows, *video]] = state[entrance].to(first)
    state[entrance] = first
    for name in ("unet.out.2.weight", "unet.out.2.bias"):
        last = torch.zeros_like(wide.state_dict()[name])
        last[rows] = state[name].to(last)
        state[name] = last
    wide.load_state_dict(state)
    return wide.to(next(model.parameters()).device)


def _drop(module: nn.Module, *names: str) -> None:
    for name in names:
        delattr(module, name)
