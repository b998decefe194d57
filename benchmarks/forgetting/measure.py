"""What a model forgets while it learns a domain, and what each method against that keeps and costs.

A Llama of 1.0 M parameters is pre-trained on English prose, then trained on C++, by the recipes that a user writes.
rise: of the held-out general loss; gain: fall of the held-out domain loss; both from before the first step on C++ to
after the last one, means over three seeds, each with a base of its own. docs/forgetting.md has the whole table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path
from typing import Any

from benchmarks.forgetting import corpus, figures
from benchmarks.forgetting.experiment import FULL, QUICK, Arm, Place
from benchmarks.forgetting.figures import BOTH, NONE, Course
from benchmarks.rows import Row
from durable import write_atomic
from recipes import prose

WORK = Path(__file__).parent.parent / ".forgetting"
"""Ignored by git: texts and runs, so that a measurement that was cut goes on."""
RECORD = Path(__file__).parent.parent / "results" / "forgetting.json"
"""What docs/forgetting.md and its plot are made of."""
CHOOSING = 0
"""Each setting is chosen on a seed that is not among those reported, which are 1, 2, 3."""
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
LOWER = (1 / 2, 1 / 4, 1 / 8)  # of the rate that learns the domain best
SHARES = (0.05, 0.10, 0.25)
STRENGTHS = {"ewc": (10.0, 30.0, 100.0, 300.0), "l2sp": (3.0, 10.0, 30.0, 100.0)}
ALONE = 30  # steps of a run that is timed
GRID = tuple(product((0.10, 0.25), (10.0, 30.0)))


def measure(quick: bool) -> list[Row]:
    size = QUICK if quick else FULL
    place = Place(WORK, size, corpus.make(WORK / "corpus"))
    record = json.loads(json.dumps(experiment(place)))
    if quick:  # so few steps show that all of it runs, and no more
        return [replace(row, goal="", met=None) for row in figures.rows(record)]
    write_atomic(RECORD, json.dumps(record, indent=1) + "\n")
    return list(figures.rows(record))


def experiment(place: Place) -> dict[str, Any]:
    """The record, in JSON's own types."""
    seeds = range(1, place.size.seeds + 1)
    place.train(place.base(seed) for seed in (CHOOSING, *seeds))
    tried, chosen = choose(place)
    place.train(place.domain(arm, seed, shown=True) for arm in chosen.values() for seed in seeds)
    runs = {name: [place.course(place.domain(arm, seed, True)) for seed in seeds] for name, arm in chosen.items()}
    return {
        "about": about(place),
        "chosen": {name: arm.words for name, arm in chosen.items()},
        "tried": {name: {arm.words: rounded(one) for arm, one in arms.items()} for name, arms in tried.items()},
        "runs": {name: [rounded(one) for one in courses] for name, courses in runs.items()},
        "step_seconds": step_seconds(place, chosen),
    }


def choose(place: Place) -> tuple[dict[str, dict[Arm, Course]], dict[str, Arm]]:
    """Of each arm: what was tried, and what is taken."""
    rates = look(place, map(Arm, RATES))
    natural = max(rates, key=lambda arm: rates[arm].gain)
    none, lr = rates[natural], natural.lr
    tried = {
        NONE: rates,
        "low LR": look(place, (Arm(lr * part) for part in LOWER)),
        "replay": look(place, (Arm(lr, share) for share in SHARES)),
        "EWC": look(place, (Arm(lr, 0.0, "ewc", strength) for strength in STRENGTHS["ewc"])),
        "L2-SP": look(place, (Arm(lr, 0.0, "l2sp", strength) for strength in STRENGTHS["l2sp"])),
        BOTH: look(place, (Arm(lr, share, "ewc", strength) for share, strength in GRID)),
    }
    chosen = {name: figures.best(arms, none) for name, arms in tried.items() if name != NONE}
    return tried, {NONE: natural, **chosen}


def look(place: Place, arms: Iterable[Arm]) -> dict[Arm, Course]:
    recipes = {arm: place.domain(arm, CHOOSING, shown=False) for arm in islice(arms, place.size.tries)}
    place.train(recipes.values())
    return {arm: place.course(recipe) for arm, recipe in recipes.items()}


def step_seconds(place: Place, chosen: Mapping[str, Arm]) -> dict[str, float]:
    """Of short runs of their own, one after the other, each method in turn, the lowest median: a neighbour on the
    same cores only adds to it."""
    place = Place(place.folder, replace(place.size, domain=min(place.size.domain, ALONE)), place.corpus)
    found: dict[str, list[float]] = {name: [] for name in (NONE, "L2-SP", "EWC")}
    for seed in range(1, place.size.seeds + 1):
        for name, seconds in found.items():
            recipe = place.domain(chosen[name], seed, shown=False) | {"name": f"alone-{seed}"}
            place.train([recipe])
            seconds.append(place.course(recipe).step_seconds)
    return {name: round(min(seconds), 5) for name, seconds in found.items()}


def rounded(course: Course) -> dict[str, Any]:
    losses = {key: [round(loss, 4) for loss in getattr(course, key)] for key in ("general", "domain")}
    return asdict(course) | losses | {"step_seconds": round(course.step_seconds, 4)}


def about(place: Place) -> dict[str, Any]:
    return {
        "size": asdict(place.size),
        "corpus": place.corpus,
        "choosing_seed": CHOOSING,
        "versions": {name: version(name) for name in ("torch", *prose.PACKAGES)},
    }
