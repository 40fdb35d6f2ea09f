"""The benchmark of perturbations: all ways give the same numbers, and its floors are those of the architecture."""

import pytest
import torch

from benchmarks import perturbations
from experiments.network.ground import divergence, ground
from experiments.network.subject import Subject


@pytest.fixture(scope="module")
def here():
    return ground(Subject(layers=2, rows=1_500, places=12), "0")


def test_every_way_gives_the_same_divergences(here):
    moved = perturbations.perturbed(here, seed=0)
    ours = here.divergences(moved)
    for run in (perturbations.Hooked(here), perturbations.Bare(here)):
        for way, place in ((0, 0), (17, 5), (40, 11), (63, 3)):
            found = divergence(here.clean[place : place + 1], run(moved[way, place], place)[None])
            assert found.item() == pytest.approx(ours[way, place].item(), rel=1e-3, abs=1e-5)
    assert ours[-1].max() > 0.1  # and rows were moved at all


def test_rows_are_moved_by_every_radius_in_every_direction(here):
    steps = perturbations.perturbed(here, seed=0) - here.x
    lengths = steps.norm(dim=2) / here.covariance.trace().sqrt().float()
    wanted = torch.tensor(perturbations.RADII).repeat_interleave(perturbations.DIRECTIONS)
    torch.testing.assert_close(lengths, wanted[:, None].expand_as(lengths), rtol=1e-2, atol=1e-3)


def test_floors_are_those_of_the_architecture(here):
    block = 2 * 12 * 128**2  # attention 4 d^2, MLP 8 d^2, two flop each
    assert perturbations.block_flop(here, after=False) == 4 * block
    assert perturbations.block_flop(here, after=True) == 3 * block
