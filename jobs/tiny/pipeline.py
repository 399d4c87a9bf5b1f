"""Owns the small SDXL pipeline folder: all of SDXL's parts, a few million parameters.

The weights are random, from a seed: a stand-in with the right shapes, which a trained model
replaces. Must not know about runs or jobs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VERSION = 2
"""Part of the folder's name: raise it with any change that changes the files."""

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 1),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + 64,
    "cross_attention_dim": 2 * 64,
    "norm_num_groups": 16,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 16,
    "sample_size": 128,
    "scaling_factor": 0.13025,
}
# SDXL base 1.0's own scheduler keys: a bare configuration would make DDIM clip its samples.
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "sample_max_value": 1.0,
    "trained_betas": None,
}
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TOKENIZERS = ("tokenizer", "tokenizer_2")
_LEAVES = {"gamma": "weight", "beta": "bias", "embedding_table": "weight"}
"""MindSpore's names of a norm's and an embedding's weights, and PyTorch's."""
_START, _END = "<|startoftext|>", "<|endoftext|>"


def _write_tokenizer(folder: Path, pad: str) -> int:
    """Train a byte-pair vocabulary on the drawings' captions; return its size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    from jobs.tiny.drawings import scenes

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator((scene.caption for scene in scenes(2000, 0)), trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP's order: bytes, bytes that end a word, merges, the two marks; the end mark is the
    # highest id, where CLIP's pooling looks for it.
    words = alphabet + [char + "</w>" for char in alphabet] + [m.replace(" ", "") for m in merges]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    for mark in (_START, _END):
        vocabulary[mark] = len(vocabulary)
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": _START,
            "eos_token": _END,
            "unk_token": _END,
            "pad_token": pad,
            "do_lower_case": True,
        },
    )
    return len(vocabulary)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file of JSON, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def fill(cell: Any, seed: int) -> None:
    """Set every weight from one generator: matrices by 1/sqrt(inputs), scales 1, shifts 0."""
    import mindspore as ms
    import numpy as np

    rng = np.random.Generator(np.random.Philox(seed))
    for parameter in cell.get_parameters():
        shape = parameter.shape
        if len(shape) > 1:
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        elif parameter.name.endswith(("gamma", "weight")):
            value = np.ones(shape)
        else:
            value = np.zeros(shape)
        parameter.set_data(ms.Tensor(value.astype(np.float32)))


def _to_pytorch(path: Path) -> None:
    """Rewrite a file with PyTorch's names, as base models have them; mindone writes MindSpore's."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(path)
    named = {}
    for name, array in arrays.items():
        head, _, leaf = name.rpartition(".")
        named[f"{head}.{_LEAVES.get(leaf, leaf)}"] = array
    save_file(named, path, {"format": "pt"})  # transformers refuses files that do not say `pt`


def save(cell: Any, folder: Path) -> None:
    """Write one part: its configuration, and its weights under PyTorch's names."""
    cell.save_pretrained(str(folder))
    (path,) = folder.glob("*.safetensors")
    _to_pytorch(path)


def write_folder(folder: Path, seed: int = 0) -> None:
    """Write the pipeline folder that `from_pretrained` reads; the same bytes for the same seed."""
    from mindone.diffusers import AutoencoderKL, UNet2DConditionModel
    from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection
    from transformers import CLIPTextConfig

    write_json(folder / "model_index.json", INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    size = _write_tokenizer(folder / "tokenizer", _END)
    _write_tokenizer(folder / "tokenizer_2", "!")
    marks = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 1}
    first = CLIPTextConfig(
        vocab_size=size, projection_dim=64, hidden_act="quick_gelu", **TEXT, **marks
    )
    second = CLIPTextConfig(vocab_size=size, projection_dim=64, hidden_act="gelu", **TEXT, **marks)
    parts = {
        "text_encoder": CLIPTextModel(first),
        "text_encoder_2": CLIPTextModelWithProjection(second),
        "unet": UNet2DConditionModel(**UNET),
        "vae": AutoencoderKL(**VAE),
    }
    for offset, (name, cell) in enumerate(parts.items()):
        fill(cell, seed + offset)
        save(cell, folder / name)
