"""An evaluation, and runs beside each other, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.evaluate.metrics import METRICS


def show(scores: Mapping[str, Any], console: Console) -> None:
    """What stands in scores.json."""
    about, metrics = scores["about"], list(scores["scores"])
    head = f"{about['run']}: {scores['rows']:,} rows of {about['data']['file']}, answered after step {about['step']:,}"
    table = _table(head, "model", *scores["baselines"])
    for metric in metrics:
        values = (Text(number(one[metric]["value"]), "dim") for one in scores["baselines"].values())
        table.add_row(METRICS[metric], Text(interval(scores["scores"][metric]), "bold"), *values)
    parts = [table, *([_groups(scores)] if scores["by_group"] else []), *map(Text, _notes(scores))]
    console.print(*parts, sep="\n", soft_wrap=True)


def _groups(scores: Mapping[str, Any]) -> Table:
    first, *others = (name for name in ("f1_micro", "exact_match", "rouge_l") if name in scores["scores"])
    table = _table("", "rows", *(METRICS[name] for name in (first, *others)))
    for group, values in scores["by_group"].items():
        cells = (number(values[name]["value"]) for name in others)
        table.add_row(Text(group), f"{values['rows']:,}", interval(values[first]), *cells)
    return table


def _table(title: str, *columns: str) -> Table:
    """The first column names the row. Narrow, since a terminal may have 80 columns."""
    table = Table(
        title=Text(title) if title else None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _notes(scores: Mapping[str, Any]) -> list[str]:
    notes = ["95 % intervals by bootstrap over the rows, in brackets"]
    if "figures" in scores["references"]:
        notes.append(
            f"of the references' own figures the prompts have {number(scores['references']['figures']['value'])}"
        )
    if failures := scores["parse_failures"]:
        notes.append(f"answers without labels that can be read, which count as none: {failures:,}")
    if cut := scores["not_ended"]:
        notes.append(f"answers that were cut at {scores['about']['new_tokens']} tokens (--new-tokens): {cut:,}")
    if long := scores["too_long"]:
        notes.append(f"prompts that leave the model's context no room, and count as not answered: {long:,}")
    if near := scores["nearest"]:
        notes.append(
            f"training prompts come as near as {near['largest']:.2f} (median {near['median']:.2f}, cosine; "
            f"nearest to {near['of']}); the same prompt: {near['same_prompt']:,}"
        )
    return [*notes, *(kept(name, loss) for name, loss in scores["losses"].items())]


def kept(name: str, loss: Mapping[str, Any]) -> str:
    """What became of a held-out loss."""
    rise = loss["after"] / loss["before"] - 1
    return (
        f"held-out loss{f' of {name}' * bool(name)}: {loss['before']:.4f} after step {loss['first_step']:,}, "
        f"{loss['after']:.4f} after step {loss['last_step']:,} ({rise:+.1%})"
    )


def show_compared(result: Mapping[str, Any], console: Console) -> None:
    """What compare found."""
    data, runs = result["data"], result["runs"]
    heads = [f"{run['run']}\n{run['method']}, lr {run['lr']:g}\nstep {run['step']:,}" for run in runs]
    heads += [f"{pair['runs'][0]}\nminus\n{pair['runs'][1]}" for pair in result["pairs"]]
    table = _table(f"{data['rows']:,} rows of {data['file']}", *heads)
    for metric in runs[0]["scores"]:
        gaps = (Text(interval(gap, "+"), _style(gap)) for p in result["pairs"] for gap in [p["differences"][metric]])
        table.add_row(METRICS[metric], *(interval(run["scores"][metric]) for run in runs), *gaps)
    table.add_section()
    for name, cells in _costs(runs):
        table.add_row(name, *cells)
    notes = ["95 % intervals by bootstrap in brackets; of differences row by row (paired)"]
    if "blind" in result:
        folder, key = result["blind"]
        notes += [f"for the raters: {folder}", f"whose answers they are: {key}"]
    console.print(table, *(Text(note) for note in notes), sep="\n", soft_wrap=True)
    for pair in result["pairs"]:
        console.print("\n", Text(pair["verdict"], "bold"), sep="")


def _costs(runs: list[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Below the scores: what each run has cost, and what became of its held-out losses."""
    costs = [run["cost"] for run in runs]
    yield "answers not read", [f"{run['parse_failures']:,}" for run in runs]
    yield "cost", [f"{cost['hours']:.3g} {cost['unit']}" if cost else "-" for cost in costs]
    yield "peak memory of rank 0", [f"{cost['memory'] / 1e9:.2f} GB" if cost else "-" for cost in costs]
    for name in dict.fromkeys(name for run in runs for name in run["losses"]):
        losses = [run["losses"].get(name) for run in runs]
        yield f"held-out loss{f', {name}' * bool(name)}", [change(loss) if loss else "-" for loss in losses]


def change(loss: Mapping[str, Any]) -> str:
    """5.100 > 5.406 (+6.0%)"""
    return f"{loss['before']:.3f} > {loss['after']:.3f} ({loss['after'] / loss['before'] - 1:+.1%})"


def _style(gap: Mapping[str, float | None]) -> str:
    """Bold: not 0 by its interval."""
    low, high = gap["low"], gap["high"]
    return "bold" if low is not None and high is not None and not low <= 0 <= high else ""


def interval(score: Mapping[str, float | None], sign: str = "") -> str:
    """0.912 [0.89, 0.93]"""
    if score["value"] is None or score["low"] is None or score["high"] is None:
        return number(score["value"])
    return f"{score['value']:{sign}.3f} [{score['low']:{sign}.2f}, {score['high']:{sign}.2f}]"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
