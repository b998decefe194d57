"""The simulation of large machines: against arithmetic, and its page."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from benchmarks.goodput.model import Site, goodput
from benchmarks.scale import __main__ as scale
from benchmarks.scale.simulate import SAVES, Place, month


@pytest.mark.parametrize("nodes", [8, 128])
def test_the_simulation_agrees_with_the_sum_of_small_losses(nodes: int) -> None:
    place = replace(Place(), hangs=1.0, lost_nodes=0.0)
    simulated = fmean(month(nodes, place=place, seed=seed).goodput for seed in range(40))
    site = Site(gpus=8 * nodes, gpu_hours_between_failures=8 * 24 / place.failures)
    assert goodput(site, SAVES, place.waiting) == pytest.approx(simulated, abs=0.004)


def test_what_interrupts_more_leaves_less() -> None:
    plain = [month(nodes).goodput for nodes in (1, 32, 1024)]
    assert plain == sorted(plain, reverse=True)
    assert month(64, kind="waiting").pace > month(64, kind="requeue").pace > month(64, kind="by hand").pace
    assert month(1024, every=14_400).goodput < month(1024, every=600).goodput


def test_the_page_is_that_of_the_simulation() -> None:
    assert scale.PAGE.read_text() == scale.page()
