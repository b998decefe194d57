"""What every contender is given: the same weights in a Hugging Face folder, the same tokens in the same order, the same
AdamW. Tokens are drawn so that there is something to learn: some are a thousand times as frequent as others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from settings import dump_yaml

LR, DECAY, BETAS, EPS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1e-8, 1.0
SEED = 1
STEPS = 100_000
"""Of a run: none comes to its end."""
END = "<end>"
"""The token that ends a document; its number is 0, and every other token is its own number in words."""


@dataclass(frozen=True)
class Shape:
    """A Llama, and what goes through it in a step of one rank."""

    name: str
    hidden: int
    layers: int
    vocabulary: int
    rows: int
    length: int
    """Tokens of a row."""

    @property
    def config(self) -> dict[str, Any]:
        return {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": 8 * self.hidden // 3,
            "num_hidden_layers": self.layers,
            "num_attention_heads": max(2, self.hidden // 64),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.length,
            "tie_word_embeddings": False,
        }


def write_weights(shape: Shape, folder: Path) -> Path:
    from transformers.utils.logging import disable_progress_bar

    from trainer.model.weights import build
    from trainer.shape import Model

    disable_progress_bar()
    model: Any = build(Model(config=shape.config), SEED)
    model.save_pretrained(folder)
    return folder


def write_tokenizer(vocabulary: int, folder: Path) -> Path:
    """A word is a number: a text becomes just the tokens that it was drawn as."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {END: 0} | {str(number): number for number in range(1, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return folder


def write_documents(lengths: Sequence[int], vocabulary: int, file: Path) -> Path:
    """Documents of these lengths (tokens, with the one that ends them)."""
    return _write(({"text": _text(one)} for one in _drawn(lengths, vocabulary)), file)


def write_pairs(lengths: Sequence[int], prompt: float, vocabulary: int, file: Path) -> Path:
    """The same documents, each cut into a prompt of that share and what has to be written after it."""
    cut = ((one, round(prompt * len(one))) for one in _drawn(lengths, vocabulary))
    return _write(({"prompt": _text(one[:at]) + " ", "completion": _text(one[at:])} for one, at in cut), file)


def _drawn(lengths: Sequence[int], vocabulary: int) -> list[npt.NDArray[Any]]:
    chance = np.random.default_rng(SEED)
    weights = 1 / np.arange(1, vocabulary)
    tokens = chance.choice(np.arange(1, vocabulary), size=sum(lengths) - len(lengths), p=weights / weights.sum())
    return np.split(tokens, np.cumsum(np.array(lengths) - 1)[:-1])


def _text(tokens: npt.NDArray[Any]) -> str:
    return " ".join(map(str, tokens))


def _write(rows: Iterable[dict[str, str]], file: Path) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recipe(data: Path, length: int, rows: int, precision: str, **more: Any) -> dict[str, Any]:
    """Outlast's, over a folder of `inputs`. `rows`: sequences of one step of one rank, times the ranks' number."""
    return {
        "name": "outlast",
        "model": {"path": str(data / "weights"), "tokenizer": str(data / "tokenizer")},
        "data": {"train": [str(data / "train.jsonl")], "seq_len": length, "cache": str(data / "prepared")},
        "train": {"steps": STEPS, "global_batch_size": rows, "precision": precision},
        "optim": {
            "lr": LR,
            "schedule": "constant",
            "warmup": 0.0,
            "weight_decay": DECAY,
            "betas": list(BETAS),
            "eps": EPS,
            "clip": CLIP,
        },
        "checkpoint": {"every": STEPS},
        "watchdog": {"step_seconds": 1e6},  # behind the gate a step may wait for long
        "tensorboard": False,
        "export": False,
    } | more


def write_run(folder: Path, tree: dict[str, Any]) -> Path:
    """The run folder of one of Outlast's; its config."""
    folder.mkdir(parents=True)
    config = folder / "config.yaml"
    config.write_text(dump_yaml(tree))
    return config


def write_settings(folder: Path, data: Path, rows: int, bf16: bool, **more: Any) -> Path:
    """The folder of a peer: what its script reads."""
    folder.mkdir(parents=True)
    same = {"lr": LR, "decay": DECAY, "betas": BETAS, "eps": EPS, "clip": CLIP, "steps": STEPS, "logged_every": 1}
    given = {"weights": str(data / "weights"), "tokens": str(data / "tokens.npy"), "rows": rows, "bf16": bf16}
    (folder / "settings.json").write_text(json.dumps(same | given | more))
    return folder


def inputs(shape: Shape, sequences: int, folder: Path) -> Path:
    """Weights, tokenizer, documents as long as a row, and their tokens in the order in which Outlast reads them."""
    folder.mkdir(parents=True)
    write_weights(shape, folder / "weights")
    write_tokenizer(shape.vocabulary, folder / "tokenizer")
    write_documents([shape.length] * sequences, shape.vocabulary, folder / "train.jsonl")
    np.save(folder / "tokens.npy", in_order(recipe(folder, shape.length, 1, "fp32"), sequences))
    return folder


def in_order(tree: dict[str, Any], sequences: int) -> npt.NDArray[Any]:
    """The documents (sequences, T) in the first sequences of a run, whatever its batch is: one in each."""
    from trainer.data.order import batch_indices

    prepared = prepare_data(tree)
    indices = batch_indices(0, sequences, prepared.sequences, 0)
    return np.stack([tokens for index in indices for tokens, _ in documents(prepared, index)])


def documents(prepared: Any, sequence: int) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """All tokens of each piece of one that a sequence holds, its last target too, and which of them count."""
    pieces = prepared.pieces[prepared.packs[sequence] : prepared.packs[sequence + 1]].tolist()
    names = ("tokens", "loss")
    return [tuple(prepared.read(name, first, pairs + 1) for name in names) for _, first, pairs in pieces]


def prepare_data(tree: dict[str, Any]) -> Any:
    from trainer.config import resolve
    from trainer.data.prepare import prepare

    config = resolve(tree, "step")
    quiet: Any = lambda *_: None  # noqa: E731
    return prepare(config.data, config.model.tokenizer_folder, Path(config.data.cache or ""), "train", quiet)
