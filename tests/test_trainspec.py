"""What a training spec refuses before anything starts."""

from __future__ import annotations

import json

import pytest

from jobs import specs
from jobs.errors import BadSpec


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ema_decay": 0.99}, "ema_decay is for method vanilla, not lora"),
        ({"method": "vanilla", "lora_dropout": 0.1}, "lora_dropout is for the LoRA methods"),
        ({"text_encoder_learning_rate": 1e-5}, "is for method lora-te, not lora"),
        ({"lora_targets": []}, "lora_targets names no module"),
        ({"steps": 10, "warmup_steps": 10}, "warmup_steps (10) must be less than steps"),
        ({"caption_dropout": 1.1}, "caption_dropout: "),
        ({"lora_dropout": 1}, "lora_dropout: "),
        ({"lora_dropout": 0.9999}, "lora_dropout: Input should be less than or equal to 0.99"),
        ({"lora_dropout": 1e-5}, "lora_dropout (1e-05) is below 0.001; set 0 for none"),
        ({"adam_beta2": 1}, "adam_beta2: "),
        (
            {"adam_beta2": 0.99999999999},
            "adam_beta2: Input should be less than or equal to 0.99999",
        ),
        (
            {"adam_beta1": 0.99999999999},
            "adam_beta1: Input should be less than or equal to 0.99999",
        ),
        ({"adam_epsilon": 1e-300}, "adam_epsilon (1e-300) is below 1e-16"),
        ({"method": "vanilla", "ema_decay": 0.9999999999}, "ema_decay: Input should be less than"),
        ({"max_grad_norm": 1e-300}, "max_grad_norm: "),
        ({"learning_rate": 1e-300}, "learning_rate (1e-300) is below 1e-16"),
        ({"lora_alpha": 1e300}, "lora_alpha: "),
        ({"lr_schedule": "cosin"}, "lr_schedule: "),
        ({"prediction_type": "sample"}, "prediction_type: "),
        ({"accumulate": 0}, "accumulate: "),
        ({"snr_gamma": 0}, "snr_gamma: "),
        ({"resolution": 100}, "resolution: "),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_name(given: dict[str, object], told: str) -> None:
    with pytest.raises(BadSpec) as caught:
        specs.parse({"kind": "train", **given})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_does_not_fit_is_told_at_once() -> None:
    with pytest.raises(BadSpec) as caught:
        specs.parse({"kind": "train", "ema_decay": 0.9, "steps": 5, "warmup_steps": 9})
    assert "ema_decay" in str(caught.value)
    assert "warmup_steps" in str(caught.value)


def test_a_spec_of_before_the_newer_keys_still_reads_and_means_the_same() -> None:
    spec = specs.parse_json('{"kind": "train", "learning_rate": 0.001}')
    assert isinstance(spec, specs.TrainSpec)
    assert (spec.lr_schedule, spec.accumulate, spec.ema_decay) == ("constant", 1, 0.0)
    assert spec.lora_targets == ("to_q", "to_k", "to_v", "to_out.0")
    assert json.loads(specs.to_json(spec))["lora_targets"] == list(spec.lora_targets)
