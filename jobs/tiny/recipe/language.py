"""Owns the tokenizer and the training of both text encoders: captions in, attributes out.

The encoders learn to say what a caption tells (colour, shape, place, ...), from the pooled
embedding and from the tokens' embeddings, which are what the UNet reads. Must not know pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from numpy.typing import NDArray

from jobs import draws
from jobs.tiny import captions, scenes
from jobs.tiny.recipe.architecture import TEXT
from jobs.tiny.recipe.fitting import Plan, fit

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = 1024
"""The vocabulary's limit, without its two marks and the bytes that end a word."""
BATCH = 64
PLAN = Plan(steps=800, learning_rate=1e-3, warmup=100)
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "colour": tuple(scenes.COLOURS),
    "what": (*scenes.SHAPES, *scenes.THINGS),
    "background": (*scenes.GROUNDS, None),
    "place": (*scenes.PLACES, None),
    "size": tuple(scenes.SIZES),
    "fill": scenes.FILLS,
    "count": (1, *scenes.COUNTS),
}
"""What a caption tells; the last choice of two of them is that it leaves it open."""


def told(seed: int, number: int) -> tuple[str, list[int]]:
    """Return caption `number`, and the place of its choice in each of ATTRIBUTES."""
    scene = scenes.scene(seed, number)
    said = captions.varied(scene, draws.generator(seed, draws.TINY_TEXT, number))
    choices = (
        scene.colour, scene.what, scene.background if said.tells_background else None,
        scene.place if said.tells_place else None, scene.size, scene.fill, len(scene.spots),
    )  # fmt: skip
    rows = zip(ATTRIBUTES.values(), choices, strict=True)
    return said.text, [choice.index(made) for choice, made in rows]


def write_tokenizers(folder: Path, texts: Iterable[str]) -> int:
    """Write both tokenizers in CLIPTokenizer's format; return the size of their vocabulary.

    Byte pairs as CLIP has them (Radford et al. 2021, arXiv 2103.00020, section 2.4). The two differ
    in the token that fills a caption up, as SDXL's do.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, show_progress=False, end_of_word_suffix="</w>", initial_alphabet=alphabet
    )
    bpe.train_from_iterator(texts, trainer)
    found = json.loads(bpe.to_str())["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in found]
    # CLIP's order: bytes, bytes that end a word, merges, the two marks; the end mark is the
    # highest id, where CLIP's pooling looks for it.
    words = alphabet + [char + "</w>" for char in alphabet] + [m.replace(" ", "") for m in merges]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    for mark in (START, END):
        vocabulary[mark] = len(vocabulary)
    for name, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        settings = {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True,
            "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad,
        }  # fmt: skip
        files = {
            "vocab.json": json.dumps(vocabulary),
            "merges.txt": "\n".join(("#version: 0.2", *merges)),
            "tokenizer_config.json": json.dumps(settings, indent=2),
        }
        for file, text in files.items():
            (folder / name / file).write_text(f"{text}\n", encoding="utf-8")
    return len(vocabulary)


def build(size: int) -> tuple[Any, Any]:
    """Return both encoders, untrained, for a vocabulary of `size`."""
    from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection
    from transformers import CLIPTextConfig

    marks = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 1}
    first = CLIPTextConfig(vocab_size=size, hidden_act="quick_gelu", **TEXT, **marks)
    second = CLIPTextConfig(vocab_size=size, hidden_act="gelu", **TEXT, **marks)
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


class Reader(nn.Cell):  # type: ignore[misc]
    """Both encoders as the pipeline reads them, and what is asked about their captions."""

    def __init__(self, encoders: tuple[nn.Cell, nn.Cell], seed: int) -> None:
        super().__init__()
        self.first, self.second = encoders
        rng = draws.generator(seed, draws.TINY_HEADS)
        width, pooled = 2 * TEXT["hidden_size"], TEXT["projection_dim"]
        self.sizes = tuple(len(choices) for choices in ATTRIBUTES.values())

        def matrix(name: str, *shape: int) -> Parameter:
            value = rng.standard_normal(shape, np.float32) / np.sqrt(shape[0], dtype=np.float32)
            return Parameter(Tensor(value), name=name)

        self.questions = matrix("questions", width, len(ATTRIBUTES))
        self.answers = matrix("answers", width, sum(self.sizes))
        self.pooled = matrix("pooled", pooled, sum(self.sizes))

    def construct(self, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B, sum of choices] from the tokens and from the pooled embedding."""
        one = self.first(ids, output_hidden_states=True)
        two = self.second(ids_2, output_hidden_states=True)
        tokens = ops.cat([one[-1][-2], two[-1][-2]], axis=-1)  # [B, 77, d]
        looks = ops.softmax(ops.matmul(tokens, self.questions), axis=1)  # [B, 77, attributes]
        seen = ops.matmul(looks.swapaxes(1, 2), tokens)  # [B, attributes, d]
        rows, start = [], 0
        for index, size in enumerate(self.sizes):
            rows.append(ops.matmul(seen[:, index], self.answers[:, start : start + size]))
            start += size
        return ops.cat(rows, axis=-1), ops.matmul(two[0], self.pooled)


class Loss(nn.Cell):  # type: ignore[misc]
    """Cross entropy of all answers, from the tokens and from the pooled embedding."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader, self.sizes = reader, reader.sizes

    def construct(self, ids: Tensor, ids_2: Tensor, right: Tensor) -> Tensor:
        """Return a scalar; right [B, sum of choices], ones at the choices."""
        loss, start = Tensor(0.0, ms.float32), 0
        for scores in self.reader(ids, ids_2):
            start = 0
            for size in self.sizes:
                logs = ops.log_softmax(scores[:, start : start + size], axis=-1)
                loss = loss - ops.mean(ops.sum(logs * right[:, start : start + size], dim=-1))
                start += size
        return loss


def train(
    encoders: tuple[Any, Any], tokenizers: tuple[Any, Any], seed: int, folder: Path
) -> dict[str, float]:
    """Train both encoders in place; return each attribute's accuracy on new captions.

    Its state is kept in `folder`.
    """
    reader = Reader(encoders, seed)

    def batch(step: int) -> tuple[NDArray[Any], ...]:
        return _batch(tokenizers, seed, range(step * BATCH, (step + 1) * BATCH))

    trained = dict(reader.parameters_and_names())
    for name, value in fit(Loss(reader), trained, batch, PLAN, folder).items():
        trained[name].set_data(Tensor(value))
    reader.set_train(False)
    right: list[NDArray[np.bool_]] = []
    for first in range(0, 1024, BATCH):
        ids, ids_2, ones = _batch(tokenizers, seed + 1, range(first, first + BATCH))
        for scores in reader(Tensor(ids), Tensor(ids_2)):
            right.append(_compare(scores.asnumpy(), ones))
    tokens, pooled = np.concatenate(right[0::2]), np.concatenate(right[1::2])
    found = zip(ATTRIBUTES, tokens.mean(axis=0), pooled.mean(axis=0), strict=True)
    return {name: min(float(a), float(b)) for name, a, b in found}


def _compare(scores: NDArray[np.float32], ones: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Say which answers are right, [B, attributes]."""
    edges = np.cumsum([len(choices) for choices in ATTRIBUTES.values()])[:-1]
    pairs = zip(np.split(scores, edges, axis=1), np.split(ones, edges, axis=1), strict=True)
    return np.stack([a.argmax(axis=1) == b.argmax(axis=1) for a, b in pairs], axis=1)


def _batch(
    tokenizers: tuple[Any, Any], seed: int, numbers: range
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    rows = [told(seed, number) for number in numbers]
    texts = [text for text, _ in rows]
    ids, ids_2 = (
        np.asarray(
            tokenizer(texts, padding="max_length", max_length=77, truncation=True).input_ids,
            np.int32,
        )
        for tokenizer in tokenizers
    )
    sizes = [len(choices) for choices in ATTRIBUTES.values()]
    ones = np.zeros((len(rows), sum(sizes)), np.float32)
    starts = np.cumsum([0, *sizes[:-1]])
    for row, (_, chosen) in enumerate(rows):
        ones[row, starts + chosen] = 1.0
    return ids, ids_2, ones
