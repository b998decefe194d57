"""`python -m recipes.regulator.page`: what came out, in docs/case-regulator.md and its picture, from results.json."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from docs import picture
from docs.markdown import filled, table
from durable import write_atomic
from trainer.evaluate.metrics import METRICS
from trainer.evaluate.table import change, interval, number

ROOT = Path(__file__).parent.parent.parent
RECORD = Path(__file__).parent / "results.json"
PAGE = ROOT / "docs" / "case-regulator.md"
PICTURE = ROOT / "docs" / "case-regulator.svg"
MARKS = ("<!-- results -->\n", "<!-- end of results -->")
FOUNDING = {"f1_micro": ("0.91", "0.79"), "rouge_l": ("0.74", "0.61")}
"""Full and LoRA, as the founding text has them."""
STYLES = {"full": (picture.BLUE, "o", "-"), "lora": (picture.ORANGE, "s", "--")}
NAMES = {"full": "full", "lora": "LoRA"}


def main() -> None:
    text = RECORD.read_bytes()
    record = json.loads(text)
    write_atomic(PAGE, filled(PAGE.read_text(), *MARKS, results(record)))
    write_atomic(PICTURE, draw(record, f"{RECORD.name} {hashlib.sha256(text).hexdigest()}"))


def results(record: Mapping[str, Any]) -> str:
    """Markdown."""
    seeds = record["seeds"]
    parts = [_about(record), table(("", *_columns(seeds)), _scores(seeds))]
    if len(seeds) > 1:
        parts.append(table(("seed", "full", "LoRA", "full minus LoRA"), _by_seed(seeds)))
    parts += [
        f"{_verdict(seeds)}\n",
        f"![Held-out losses, and F1 by kind of report{_first(seeds)}](case-regulator.svg)\n",
        table(("F1 micro of", "rows", *_columns(seeds)[:2]), _groups(record)),
        table(("beside it", *METRICS.values()), _baselines(record)),
        _leaks(record["nearest"], record["common"]),
    ]
    if any(record["rates"].values()):
        lines = [
            [NAMES[method], ", ".join(f"{rate}: {f1:.3f}" for rate, f1 in found.items())]
            for method, found in record["rates"].items()
        ]
        parts.append(table(("", "F1 micro on the development set, by the rate of language and labels"), lines))
    return "\n".join(parts)


def _about(record: Mapping[str, Any]) -> str:
    shape, base = record["shape"], record["base"]
    loss = [point["general"] for point in base["losses"]]
    first = record["seeds"][0]
    costs = [run["cost"] for run in first["runs"]]
    last = f"{loss[-1]:.3f}, after {loss[-2]:.3f} at the evaluation before" if len(loss) > 1 else f"{loss[-1]:.3f}"
    causes = sorted({cause for causes in record["causes"].values() for cause in causes} - {"done"})
    cut = f", with interruptions on the way ({', '.join(causes)})" if causes else ""
    command = "make case-full" if any(record["rates"].values()) else "make case"
    computed = ", computed in fp32 for want of instructions for bf16" * (record["precision"] == "fp32")
    model = f"A Llama of {shape['num_hidden_layers']} layers and a width of {shape['hidden_size']}{computed}"
    hours = " and ".join(f"{name} {cost['hours']:.2f}" for name, cost in zip(NAMES.values(), costs, strict=True))
    seeds = "seed" + "s" * (len(record["seeds"]) > 1) + " "
    seeds += ", ".join(f"{one['runs'][0]['seed']}" for one in record["seeds"])
    return (
        f"`{command}` of {record['date']}, {seeds}, on two CPU cores. {model}; its base was trained for "
        f"{base['steps']:,} steps to a held-out loss of {last}. Then {first['runs'][0]['step']:,} steps of each "
        f"method, {hours} {costs[0]['unit']}{cut}. {first['data']['rows']:,} test reports, greedy answers; in "
        f"brackets 95 % by bootstrap over them, of the difference row by row.\n"
    )


def _first(seeds: Sequence[Mapping[str, Any]]) -> str:
    return f", seed {seeds[0]['runs'][0]['seed']}" * (len(seeds) > 1)


def _columns(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    of = _first(seeds)
    return [f"full{of}", f"LoRA{of}", "full minus LoRA", "founding text: full, LoRA"]


def _scores(seeds: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    full, lora = seeds[0]["runs"]
    gaps = seeds[0]["pairs"][0]["differences"]
    for name in full["scores"]:
        told = ", ".join(FOUNDING.get(name, ()))
        yield [
            METRICS[name],
            interval(full["scores"][name]),
            interval(lora["scores"][name]),
            interval(gaps[name], "+"),
            told,
        ]
    yield ["answers without labels that can be read", *(f"{run['parse_failures']:,}" for run in (full, lora)), "", ""]
    for name in full["losses"]:
        yield [f"held-out loss, {name}", *(change(run["losses"][name]) for run in (full, lora)), "", ""]
    yield ["learning rate", *(f"{run['lr']:g}" for run in (full, lora)), "", "2e-5"]
    yield ["peak memory of rank 0", *(f"{run['cost']['memory'] / 1e9:.2f} GB" for run in (full, lora)), "", ""]


def _by_seed(seeds: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """F1 micro."""
    for one in seeds:
        values = [interval(run["scores"]["f1_micro"]) for run in one["runs"]]
        yield [f"{one['runs'][0]['seed']}", *values, interval(one["pairs"][0]["differences"]["f1_micro"], "+")]
    means = [mean(one["runs"][side]["scores"]["f1_micro"]["value"] for one in seeds) for side in (0, 1)]
    yield ["mean", *map(number, means), f"{means[0] - means[1]:+.3f}"]


def _verdict(seeds: Sequence[Mapping[str, Any]]) -> str:
    if len(seeds) == 1:
        return str(seeds[0]["pairs"][0]["verdict"])
    gaps = [one["pairs"][0]["differences"]["f1_micro"] for one in seeds]
    points = [100 * gap["value"] for gap in gaps]
    beyond = sum(gap["low"] > 0 or gap["high"] < 0 for gap in gaps)
    return (
        f"Over {len(seeds)} seeds full minus LoRA is {mean(points):+.1f} points of F1 micro on the average (standard "
        f"deviation {stdev(points):.1f}); {beyond} of the {len(seeds)} differences lie beyond their own 95 %."
    )


def _groups(record: Mapping[str, Any]) -> Iterator[list[str]]:
    full, lora = (record["groups"][run["run"]] for run in record["seeds"][0]["runs"])
    for name in full:
        yield [
            f"`{name}`",
            f"{full[name]['rows']:,}",
            interval(full[name]["f1_micro"]),
            interval(lora[name]["f1_micro"]),
        ]


def _baselines(record: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, one in {**record["baselines"], "the references themselves": record["references"]}.items():
        yield [name, *(number(one[metric]["value"]) for metric in METRICS)]


def _leaks(nearest: Mapping[str, Any], common: Mapping[str, int]) -> str:
    """What a model could know of the test reports by heart."""
    both = ", ".join(f"{count:,} {kind}s" for kind, count in common.items())
    return (
        f"In two splits: {both}. The most similar of {nearest['training_rows']:,} training reports (cosine of their "
        f"words, rare ones weigh more; 1: the same): median {nearest['median']:.2f} over the test reports, at most "
        f"{nearest['largest']:.2f} (`{nearest['of']}`).\n"
    )


# --- the picture ------------------------------------------------------------------------------------------


def draw(record: Mapping[str, Any], description: str) -> str:
    figure, (task, general, groups) = picture.subplots(1, 3, figsize=(10.5, 3.6), width_ratios=[1, 1, 1.3])
    runs = dict(zip(STYLES, record["seeds"][0]["runs"], strict=True))
    for axes, name in ((task, "task"), (general, "general")):
        for method, run in runs.items():
            points = record["curves"][run["run"]]
            colour, mark, line = STYLES[method]
            xs, ys = ([point[key] for point in points] for key in ("step", name))
            axes.plot(
                xs,
                ys,
                color=colour,
                marker=mark,
                markevery=4,
                linestyle=line,
                markersize=3.5,
                linewidth=1.4,
                label=NAMES[method],
            )
        axes.set_title({"task": "held-out task", "general": "general text"}[name])
        axes.set_xlabel("step")
    task.set_ylabel("loss (nats a token)")
    bars(groups, {method: record["groups"][run["run"]] for method, run in runs.items()})
    handles, names = task.get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False, handlelength=2.6)
    figure.tight_layout(rect=(0, 0.07, 1, 1), w_pad=2)
    return picture.svg(figure, description)


def bars(axes: Axes, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """F1 micro with its interval."""
    names = list(next(iter(groups.values())))
    for offset, (method, found) in zip((-0.15, 0.15), groups.items(), strict=True):
        colour, mark, _ = STYLES[method]
        scores = [found[name]["f1_micro"] for name in names]
        values = np.array([score["value"] for score in scores])
        spans = np.abs(np.array([[score["low"], score["high"]] for score in scores]).T - values)
        axes.errorbar(np.arange(len(names)) + offset, values, spans, color=colour, fmt=mark, markersize=4, capsize=2)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1)
    axes.set_title("F1 micro by kind of report, with 95 % intervals")


if __name__ == "__main__":
    sys.exit(main())
