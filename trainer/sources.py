"""Where documents come from, and what they are: the recipe's data, and its data against forgetting. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from msgspec.structs import replace

from settings import LAYOUT, ConfigError, Count, Positive, Share, Struct
from trainer.data.values import Form

Split = Literal["train", "evaluation"]
ROLES = ("system", "developer", "user", "assistant", "tool")


class Kind(NamedTuple):
    """Of rows."""

    form: Form
    columns: tuple[str, ...]
    """As they are called in the files where data.column maps nothing."""
    inside: tuple[str, ...] = ()
    """Names inside of them, which it may map too."""


KINDS = {
    "text": Kind("text", ("text",)),
    "chat": Kind("chat", ("messages", "tools"), ("role", "content", *ROLES)),
    "completion": Kind("completion", ("prompt", "completion")),
}
"""By data.format; how such a row is read stands in the module of that name in trainer/data/kinds/."""
if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(KINDS)]


class Source(Struct, frozen=True):
    """Documents of one kind."""

    files: list[str]
    """In this order; where they lie may change, a resume compares what they hold."""
    format: Format | None = None
    """Default: data.format."""
    column: str | dict[str, str] | None = None
    """Default: data.column."""
    sample_by: Literal["document", "line"] | None = None
    """Default: data.sample_by."""
    seq_len: Count | None = None
    """Of a held-out set alone, for its loss at a shorter length; default: data.seq_len."""

    @property
    def kind(self) -> Format:
        assert self.format is not None  # data.sources has written the default in
        return self.format

    @property
    def form(self) -> Form:
        return KINDS[self.kind].form

    @property
    def row_columns(self) -> list[str]:
        """What the files call a row's columns. Raises ConfigError."""
        names = self.columns
        return [names[column] for column in KINDS[self.kind].columns]

    @property
    def columns(self) -> dict[str, str]:
        """What the files call what: our name -> theirs. Raises ConfigError."""
        kind, given = KINDS[self.kind], self.column or {}
        known = {name: name for name in (*kind.columns, *kind.inside)}
        if isinstance(given, str) and kind.form == "completion":
            each = ", ".join(f"{name}: ..." for name in kind.columns)
            raise ConfigError(f"data.column={given}: {self.kind} needs {len(known)}: data.column={{{each}}}")
        if isinstance(given, str):
            given = {kind.columns[0]: given}
        for name in given:
            if name not in known:
                raise ConfigError(f"data.column: {self.kind} has no {name}: what can be mapped: {', '.join(known)}")
        return {**known, **given}


Find = Callable[[list[str]], list[str]]


def _found(given: list[str] | dict[str, Source], find: Find) -> list[str] | dict[str, Source]:
    if isinstance(given, list):
        return find(given)
    return {name: replace(source, files=find(source.files)) for name, source in given.items()}


class Data(Struct, frozen=True):
    train: Annotated[list[str] | dict[str, Source], LAYOUT]
    """Files to train on, folders or globs of them; or several sources of such files, each with a name."""
    seq_len: Count
    """Tokens in a packed sequence."""
    evaluation: Annotated[list[str] | dict[str, Source], LAYOUT] = []
    """The same held out for the evaluation loss; or several such sets, each with a name."""
    format: Format = "text"
    """text: one document a row. chat: a list of messages a row; the loss counts the assistant's tokens. completion: a
    prompt and its completion a row; the loss counts the completion."""
    column: str | dict[str, str] | None = None
    """The row's field; default: `text`, or `messages` for chat. Or a mapping, where the files call things otherwise:
    {prompt: question, completion: answer}; {messages: conversations, role: from, content: value, user: human}."""
    sample_by: Literal["document", "line"] = "document"
    """A plain text file (.txt) is one document; or each of its lines is."""
    too_long: Literal["split", "truncate", "reject"] = "split"
    """What becomes of a document of more than max_tokens. split: it goes on in the next sequence; truncate: it ends
    there; reject: it is a row that cannot be used."""
    max_tokens: Count | None = None
    """Of one document; default: data.seq_len."""
    max_rejects: Annotated[Share, LAYOUT] = 0.01
    """Share of rows that may be unusable (counted and kept in rejects.jsonl) before the run refuses to start."""
    cache: Annotated[str | None, LAYOUT] = None
    """Folder of prepared data; default: `.prepared` beside the run folders."""

    @property
    def document_limit(self) -> int:
        """Tokens."""
        return self.max_tokens or self.seq_len

    @property
    def sources(self) -> dict[str, Source]:
        """All that is to be prepared, by key: train, or train.NAME of each source; evaluation, or evaluation.NAME."""
        found: dict[str, Source] = {}
        for key, given in (("train", self.train), ("evaluation", self.evaluation)):
            found |= {f"{key}.{name}": one for name, one in given.items()} if isinstance(given, dict) else {}
            found |= {key: Source(given)} if isinstance(given, list) and given else {}
        return {
            key: Source(
                s.files, s.format or self.format, s.column or self.column, s.sample_by or self.sample_by, s.seq_len
            )
            for key, s in found.items()
        }

    def cut_for(self, source: Source) -> Data:
        """The same, with the length that a source has of its own."""
        return replace(self, seq_len=source.seq_len or self.seq_len)

    def with_files(self, find: Find) -> Data:
        """The same, with what `find` makes of the names of each source's files."""
        return replace(self, train=_found(self.train, find), evaluation=_found(self.evaluation, find))

    def keys(self, split: Split) -> dict[str, str]:
        """The keys in `sources` of one of both, by the name that the recipe gives; files in a list have none: ""."""
        keys = [key for key in self.sources if key.partition(".")[0] == split]
        return {key.partition(".")[2]: key for key in keys}


class Forgetting(Struct, frozen=True):
    """Full training against forgetting: after each step of AdamW every weight goes a part of its way back to the one
    that the run started from, c / (1 + c) of it with c = learning rate x strength x the weight's importance."""

    strength: Positive
    """In the units of optim.weight_decay; 1 / strength is the sum of learning rates over which a distance that nothing
    widens falls to 37 %. A first try: 6 / (optim.lr x steps)."""
    method: Literal["ewc", "l2sp"] = "ewc"
    """ewc: a weight is as important as the general data says (Fisher information; 1 on the average); l2sp: all alike,
    which takes no data."""
    data: Annotated[list[str] | dict[str, Source], LAYOUT] = []
    """Files of what is to be kept, or several such sources, each with a name, which count alike: general text of
    the kind that the model was trained on. Read once, before the first step."""
    sequences: Count = 256
    """Of that data, drawn at random: each is a forward and a backward pass on every rank."""
    device: Annotated[Literal["auto", "cpu"], LAYOUT] = "auto"
    """Where the starting weights and the importance lie (4 bytes a parameter each, shared out as the optimizer is):
    auto: beside what AdamW steps on; cpu: in host memory, and pieces of them travel at each step."""

    def sources(self, data: Data) -> dict[str, Source]:
        """What is to be prepared, by key: forgetting.data, or forgetting.data.NAME of each source."""
        if self.method != "ewc":
            return {}
        found = replace(data, train=self.data, evaluation=[]).sources
        return {f"forgetting.data{key.removeprefix('train')}": source for key, source in found.items()}

    def with_files(self, find: Find) -> Forgetting:
        """The same, with what `find` makes of the names of each source's files."""
        return replace(self, data=_found(self.data, find))
