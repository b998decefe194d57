"""Greedy answers in batches that depend on the prompts alone: an evaluation that was cut goes on with the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

LARGEST = 64
"""Prompts in a batch."""
_CPU_CACHE = 1 << 30
"""Bytes of keys and values; on a GPU a quarter of its memory."""


class Answer(NamedTuple):
    answer: str
    tokens: int
    ended: bool
    """False: it was cut at its longest length."""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(bf16: bool) -> torch.dtype:
    """`bf16`: the run computed in it. A CPU computes in fp32: many have no units for bf16, and are slower with it."""
    return torch.bfloat16 if bf16 and device().type == "cuda" else torch.float32


def batch_size(config: Any, dtype: torch.dtype, tokens: int) -> int:
    """Prompts whose keys and values, of so many tokens each, have room beside the model. `config`: Hugging Face's."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * heads * width * dtype.itemsize * tokens
    at = device()
    room = torch.cuda.get_device_properties(at).total_memory // 4 if at.type == "cuda" else _CPU_CACHE
    return int(max(1, min(LARGEST, room // each)))


def batches(lengths: Sequence[int], context: int, size: int, most: int) -> list[list[int]]:
    """Numbers of the prompts that leave room for an answer, the longest first, so that one that is too large for the
    memory fails at once; each batch has prompts of about one length. One that leaves less room than `most` is alone:
    it would cut the others' answers."""
    fitting = (number for number, length in enumerate(lengths) if 0 < length < context)
    order = sorted(fitting, key=lambda number: (-lengths[number], number))
    long = sum(lengths[number] + most > context for number in order)
    return [[number] for number in order[:long]] + [
        order[first : first + size] for first in range(long, len(order), size)
    ]


class Writer:
    """A model that answers."""

    def __init__(self, folder: Path, dtype: torch.dtype, context: int) -> None:
        """The model and the tokenizer of a Hugging Face folder. `context`: positions that the model has."""
        self._device, self._context = device(), context
        disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
        self._model = model.to(self._device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ends = model.generation_config.eos_token_id
        self._ends: list[int] = ends if isinstance(ends, list) else [ends] * (ends is not None)
        # What a base model's folder says of sampling, penalties and lengths is left out: greedy.
        pad = self._ends[0] if self._ends else 0
        model.generation_config = GenerationConfig(do_sample=False, eos_token_id=self._ends or None, pad_token_id=pad)

    def write(self, prompts: Sequence[Sequence[int]], most: int) -> list[Answer]:
        """At most so many tokens each, and as many as the context has room for."""
        longest = max(map(len, prompts))
        most = min(most, self._context - longest)
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=self._device)
        there = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]).to(ids.device)
        out = self._model.generate(input_ids=ids, attention_mask=there, max_new_tokens=most)
        return [self._answer(written) for written in out[:, longest:].tolist()]

    def _answer(self, written: list[int]) -> Answer:
        length = next((index for index, token in enumerate(written) if token in self._ends), None)
        text = self._tokenizer.decode(written[:length], skip_special_tokens=True)
        return Answer(str(text), len(written) if length is None else length + 1, length is not None)


def written(
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    missing: Sequence[Sequence[int]],
    most: int,
    say: Callable[[str], None],
) -> Iterator[dict[int, Answer]]:
    """The answers of each of the `missing` batches of prompts' numbers, and now and then how far it is."""
    began = said = time.monotonic()
    done = tokens = 0
    total = sum(map(len, missing))
    for batch in missing:
        answers = dict(zip(batch, writer.write([prompts[number] for number in batch], most), strict=True))
        yield answers
        done += len(answers)
        tokens += sum(answer.tokens for answer in answers.values())
        if (now := time.monotonic()) > said + _SAY_SECONDS:
            said, seconds = now, now - began
            left = seconds / done * (total - done) / 60
            say(f"answers: {done:,} of {total:,}, {tokens / seconds:,.0f} tokens/s, {left:.0f} min left")


_SAY_SECONDS = 15.0
