"""The model that a recipe names. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from settings import LAYOUT, ConfigError, Count, Positive, Struct


class _Scaled(Struct, frozen=True, kw_only=True, tag_field="rope_type"):
    """Rotary positions scaled to a longer context: the fields are those of transformers' rope_parameters."""

    factor: Annotated[float, Meta(ge=1)]
    """The context is so many times as long afterwards."""
    original_max_position_embeddings: Count | None = None
    """Positions that the model was trained with; default: its max_position_embeddings."""
    rope_theta: Positive | None = None
    """Default: the model's own."""


class Linear(_Scaled, frozen=True, kw_only=True, tag="linear"):
    """Positions divided by the factor."""


class Dynamic(_Scaled, frozen=True, kw_only=True, tag="dynamic"):
    """A larger base, by how far the longest document of a micro batch reaches beyond the trained context."""


class Yarn(_Scaled, frozen=True, kw_only=True, tag="yarn"):
    """Low frequencies divided, high ones kept, attention sharpened."""

    attention_factor: Positive | None = None
    """Default: 0.1 ln(factor) + 1."""
    beta_fast: Positive | None = None
    """Turns within the trained context from which on a frequency is kept; default: 32."""
    beta_slow: Positive | None = None
    """Turns up to which it is divided; default: 1."""
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    truncate: bool | None = None
    """Bounds between kept and divided at whole dimensions; default: true."""


class Llama3(_Scaled, frozen=True, kw_only=True, tag="llama3"):
    """As in Llama 3.1: low frequencies divided, high ones kept, smooth between."""

    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0


class Longrope(_Scaled, frozen=True, kw_only=True, tag="longrope"):
    """A divisor for each frequency: one list within the trained context, one beyond."""

    short_factor: list[Positive]
    """One for each pair of a head's dimensions."""
    long_factor: list[Positive]
    attention_factor: Positive | None = None
    """Default: sqrt(1 + ln(factor) / ln(original_max_position_embeddings))."""


Rope = Linear | Dynamic | Yarn | Llama3 | Longrope


class Model(Struct, frozen=True):
    path: Annotated[str | None, LAYOUT] = None
    """Folder of a Hugging Face model whose weights training starts from."""
    config: dict[str, Any] | None = None
    """Or: a Hugging Face config with its `model_type`; the weights are initialized from the seed."""
    tokenizer: Annotated[str | None, LAYOUT] = None
    """Folder of the tokenizer; default: the model's folder."""
    attention: Literal["auto", "documents", "sdpa", "eager", "flash_attention_2"] = "auto"
    """documents: each packed document by itself, what a mask would hide is not computed; the others: implementations
    of transformers; auto: documents where the model's code can."""
    new_tokens: list[str] | None = None
    """Texts that become one token each; or a file of them, one a line (`python -m trainer.vocabulary` finds some). The
    row of each starts from the mean of the rows of the pieces that its text had."""
    rope: Rope | None = None
    """A longer context, by scaled rotary positions."""

    @property
    def tokenizer_folder(self) -> str:
        folder = self.tokenizer or self.path
        if folder is None:
            raise ConfigError("model.tokenizer is missing: a model built from model.config needs a tokenizer folder")
        return folder
