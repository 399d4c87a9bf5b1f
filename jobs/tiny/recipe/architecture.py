"""Owns the sizes of the small SDXL's parts: SDXL's kinds of part and of block, few channels."""

from __future__ import annotations

from typing import Any

SIDE = 128
"""Of its pictures, in pixels."""
TEXT: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 96,
    "max_position_embeddings": 77,
}
UNET: dict[str, Any] = {
    "sample_size": SIDE // 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 96),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 3),  # the number of heads, as SDXL's configuration means it
    "transformer_layers_per_block": (1, 1),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + TEXT["projection_dim"],
    "cross_attention_dim": 2 * TEXT["hidden_size"],
    "norm_num_groups": 16,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16, 32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    # All channels together: a channel that is normed alone loses the colour of a plain area.
    "norm_num_groups": 1,
    "sample_size": SIDE,
}
