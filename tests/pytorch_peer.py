"""What PyTorch's diffusers makes of our files. Not a test, and run by another Python.

    PYTHON tests/pytorch_peer.py PIPELINE LORA INPUTS OUTPUTS

PYTHON has torch, diffusers, transformers and peft (2.5.1, 0.32.2, 4.46.3 and 0.14.0 made the golden
file) and nothing of ours. PIPELINE is the small SDXL's folder, LORA a LoRA file in diffusers'
naming; INPUTS and OUTPUTS are safetensors: see test_parity.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

PROMPT = "a red circle above a blue square"


def look(pipe: StableDiffusionXLPipeline, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    conditions = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
    with torch.no_grad():
        noise = pipe.unet(
            given["noisy"], given["timesteps"], given["embeds"], added_cond_kwargs=conditions
        ).sample
        embeds, _, pooled, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    return [noise, embeds[:, :12].contiguous(), pooled]


def main() -> None:
    pipeline, lora, inputs, outputs = map(Path, sys.argv[1:])
    given = load_file(inputs)
    pipe = StableDiffusionXLPipeline.from_pretrained(pipeline, torch_dtype=torch.float32)
    plain = look(pipe, given)
    pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    adapted = look(pipe, given)
    names = ("noise", "embeds", "pooled")
    found = {f"{name}.plain": value for name, value in zip(names, plain, strict=True)}
    found |= {f"{name}.lora": value for name, value in zip(names, adapted, strict=True)}
    save_file(found, outputs, {"format": "pt"})


if __name__ == "__main__":
    main()
