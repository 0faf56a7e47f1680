"""Models of diffusers: two layers or blocks of 16 or 32 channels."""

from __future__ import annotations

from typing import Any

import torch

from .model import LibraryModel, group

_LATENT = dict(sample=(1, 4, 8, 8), timestep=1)
_CONDITION = dict(encoder_hidden_states=(1, 4, 32))
_BLOCKS = dict(
    block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8, sample_size=8
)
_UNET = dict(
    **_BLOCKS,
    attention_head_dim=8,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
_CROSS = {
    **_UNET,
    "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_TO_IMAGES = dict(
    **_BLOCKS,
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
_HEADS = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2)
_TO_PATCHES = dict(**_HEADS, in_channels=4, sample_size=8, patch_size=2)


def _diffusers(names: str, *args: Any, **kwargs: Any) -> list[LibraryModel]:
    return group("diffusers", names, *args, **kwargs)


DIFFUSERS = [
    *_diffusers("UNet2DModel", _UNET, _LATENT),
    *_diffusers("UNet2DConditionModel", _CROSS, {**_LATENT, **_CONDITION}),
    *_diffusers(
        "ControlNetModel",
        dict(
            in_channels=4,
            block_out_channels=(16, 16),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=32,
            down_block_types=_CROSS["down_block_types"],
            conditioning_embedding_out_channels=(8, 8, 8, 8),
        ),
        {**_LATENT, **_CONDITION, "controlnet_cond": (1, 3, 64, 64)},
    ),
    *_diffusers(
        "DiTTransformer2DModel",
        {**_TO_PATCHES, "norm_num_groups": 8, "num_embeds_ada_norm": 10},
        dict(hidden_states=(1, 4, 8, 8), timestep=[1], class_labels=[2]),
    ),
    *_diffusers(
        "Transformer2DModel",
        {**_HEADS, "in_channels": 16, "norm_num_groups": 8, "cross_attention_dim": 32},
        dict(hidden_states=(1, 16, 8, 8), **_CONDITION),
    ),
    *_diffusers(
        "PixArtTransformer2DModel",
        {**_TO_PATCHES, "out_channels": 8, "norm_num_groups": 8}
        | dict(cross_attention_dim=32, caption_channels=32),
        dict(
            hidden_states=(1, 4, 8, 8),
            timestep=[1],
            added_cond_kwargs=dict(resolution=None, aspect_ratio=None),
            **_CONDITION,
        ),
    ),
    *_diffusers(
        "SD3Transformer2DModel",
        {**_TO_PATCHES, "joint_attention_dim": 32, "caption_projection_dim": 32}
        | dict(pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8),
        dict(
            hidden_states=(1, 4, 8, 8),
            timestep=[1],
            pooled_projections=(1, 16),
            **_CONDITION,
        ),
    ),
    *_diffusers(
        "FluxTransformer2DModel",
        {**_HEADS, "in_channels": 4, "num_layers": 1, "num_single_layers": 1}
        | dict(
            joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8)
        ),
        dict(
            hidden_states=(1, 16, 4),
            timestep=[1],
            pooled_projections=(1, 16),
            img_ids=lambda: torch.zeros(16, 3),
            txt_ids=lambda: torch.zeros(4, 3),
            **_CONDITION,
        ),
    ),
    *_diffusers(
        "PriorTransformer",
        {
            **_HEADS,
            "embedding_dim": 16,
            "num_embeddings": 4,
            "additional_embeddings": 4,
        },
        dict(
            hidden_states=(1, 16),
            timestep=1,
            proj_embedding=(1, 16),
            encoder_hidden_states=(1, 4, 16),
        ),
    ),
    *_diffusers("AutoencoderKL VQModel", _TO_IMAGES, dict(sample=(1, 3, 16, 16))),
    *_diffusers(
        "AsymmetricAutoencoderKL",
        dict(
            down_block_types=_TO_IMAGES["down_block_types"],
            up_block_types=_TO_IMAGES["up_block_types"],
            down_block_out_channels=(16, 16),
            up_block_out_channels=(16, 16),
            norm_num_groups=8,
        ),
        dict(sample=(1, 3, 16, 16)),
    ),
    *_diffusers(
        "AutoencoderTiny",
        dict(
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        dict(sample=(1, 3, 16, 16)),
    ),
]
