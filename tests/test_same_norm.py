"""Changes of given lengths: lengths to the last digits, what each keeps, and means of a quadratic in closed form."""

import numpy as np
import pytest
import torch

from toolkit.errors import UserError
from toolkit.same_norm import (
    at_norms,
    from_covariance,
    isotropic,
    of_other_rows,
    rotated_about,
    rotated_in_bands,
    subspace,
    towards,
)

D, ROWS = 12, 9
MANY = 40_000
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(ROWS, D, generator=GENERATOR) + 1
ERRORS = torch.randn(ROWS, D, generator=GENERATOR) * torch.linspace(0.1, 2, ROWS)[:, None]
OTHERS = torch.randn(50, D, generator=GENERATOR) * torch.linspace(0.2, 3, D)
COVARIANCE = torch.cov(OTHERS.mT)
NORMS = ERRORS.norm(dim=1)
_ROOT = torch.randn(D, 5, generator=GENERATOR, dtype=torch.float64)
F = _ROOT @ _ROOT.mT
"""A quadratic of rank 5: what KL is of for small changes."""
SPACE = subspace(OTHERS, energy=0.9)
KINDS = {
    "isotropic": lambda **how: isotropic(NORMS, D, **how),
    "covariance": lambda **how: from_covariance(NORMS, COVARIANCE, **how),
    "towards": lambda **how: towards(X, NORMS, OTHERS, **how),
    "other rows": lambda **how: of_other_rows(NORMS, OTHERS, **how),
    "subspace": lambda **how: SPACE.within(NORMS, **how),
    "shaped": lambda **how: SPACE.within(NORMS, shaped=True, **how),
    "about": lambda **how: rotated_about(ERRORS, X, **how),
    "bands": lambda **how: rotated_in_bands(ERRORS, COVARIANCE, size=5, **how),
}


def quadratic(rows):
    return ((rows.double() @ F) * rows.double()).sum(-1)


def agrees(values, expected):
    """The mean over draws lies within five standard errors of what is expected, for every row."""
    error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - expected).abs() < 5 * error + 1e-5).all())


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_as_given_and_draws_follow_from_the_seed(kind):
    draws = KINDS[kind](draws=7, seed=3)
    assert draws.shape == (7, ROWS, D)
    assert draws.dtype == torch.float32
    torch.testing.assert_close(draws.norm(dim=2), NORMS.expand(7, ROWS), rtol=1e-5, atol=0)
    assert torch.equal(draws, KINDS[kind](draws=7, seed=3))
    assert (draws - KINDS[kind](draws=7, seed=4)).abs().max() > 0.1
    assert (draws[0] - draws[1]).abs().max() > 0.1


def test_isotropic_mean_of_a_quadratic_is_its_trace_over_d():
    assert agrees(quadratic(isotropic(NORMS, D, draws=MANY, seed=0)), F.trace() / D * NORMS.double() ** 2)


def test_in_a_subspace_it_is_the_trace_inside_over_its_dimensions():
    B = SPACE.basis
    expected = (B.mT @ F @ B).trace() / B.shape[1] * NORMS.double() ** 2
    assert agrees(quadratic(SPACE.within(NORMS, draws=MANY, seed=0)), expected)


def test_from_a_covariance_of_rank_one_it_is_exact():
    u = torch.nn.functional.normalize(OTHERS[0].double(), dim=0)
    found = quadratic(from_covariance(NORMS, torch.outer(u, u) * 7, draws=5, seed=0))
    torch.testing.assert_close(found, (quadratic(u) * NORMS.double() ** 2).expand(5, ROWS), rtol=1e-5, atol=0)


@pytest.mark.parametrize("ratio", [1.0, 9.0, 1e4])
def test_in_the_plane_the_share_along_an_axis_is_its_deviation_over_the_sum_of_both(ratio):
    """E[a^2 / (a^2 + b^2)] = s_a / (s_a + s_b) for independent normals of deviations s_a, s_b."""
    draws = from_covariance(torch.ones(1), torch.diag(torch.tensor([ratio, 1.0])), draws=MANY, seed=0)
    share = draws[:, :, 0].square()
    assert agrees(share.double(), torch.tensor(ratio**0.5 / (ratio**0.5 + 1)))


def test_errors_of_other_rows_average_to_their_own_mean():
    units = torch.nn.functional.normalize(OTHERS.double(), dim=1)
    assert agrees(
        quadratic(of_other_rows(NORMS, OTHERS, draws=MANY, seed=0)), quadratic(units).mean() * NORMS.double() ** 2
    )


def test_about_an_axis_the_part_along_it_stays_and_the_rest_is_averaged():
    axis = torch.nn.functional.normalize(X.double(), dim=1)
    along = (ERRORS.double() * axis).sum(1, keepdim=True) * axis
    rest = (ERRORS.double() - along).norm(dim=1)
    draws = rotated_about(ERRORS, X, draws=MANY, seed=0)
    torch.testing.assert_close((draws[:50].double() * axis).sum(2), (ERRORS.double() * axis).sum(1).expand(50, ROWS),
                               atol=1e-5, rtol=0)  # fmt: skip
    torch.testing.assert_close((X + draws[:50]).norm(dim=2), (X + ERRORS).norm(dim=1).expand(50, ROWS))
    assert agrees(quadratic(draws), quadratic(along) + rest**2 * (F.trace() - quadratic(axis)) / (D - 1))


@pytest.mark.parametrize("size", [1, 5, D])
def test_in_bands_the_energy_of_each_stays_and_is_averaged_inside(size):
    vectors = torch.linalg.eigh(COVARIANCE.double()).eigenvectors.flip(1)
    draws = rotated_in_bands(ERRORS, COVARIANCE, size=size, draws=MANY, seed=0)
    expected = torch.zeros(ROWS, dtype=torch.float64)
    for band in vectors.split(size, 1):
        energy = (ERRORS.double() @ band).square().sum(1)
        torch.testing.assert_close((draws[:50].double() @ band).square().sum(2), energy.expand(50, ROWS), rtol=1e-4,
                                   atol=1e-6)  # fmt: skip
        expected += energy * (band.mT @ F @ band).trace() / band.shape[1]
    assert agrees(quadratic(draws), expected)


def test_a_rotation_of_the_whole_space_is_an_isotropic_draw():
    draws = rotated_in_bands(ERRORS, COVARIANCE, size=D, draws=MANY, seed=0)[:, 0].double()
    torch.testing.assert_close(draws.mT @ draws / MANY, torch.eye(D).double() * NORMS[0] ** 2 / D, atol=0.01, rtol=0)
    assert draws.mean(0).abs().max() < 0.01


def test_steps_go_towards_other_rows_and_never_towards_the_row_itself():
    steps = towards(X, NORMS, torch.cat([X[:1], OTHERS]), draws=200, seed=0)
    units = torch.nn.functional.normalize(steps.double(), dim=2)
    to = torch.nn.functional.normalize((OTHERS.double() - X.double()[:, None]), dim=2)  # (rows, others, d)
    nearest = (units[:, 0] @ to[0].mT).amax(1)
    torch.testing.assert_close(nearest, torch.ones_like(nearest))
    with pytest.raises(UserError, match="nearly all the same"):
        towards(X[:1], NORMS[:1], X[:1].repeat(3, 1), draws=2, seed=0)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99, 1.0])
def test_a_subspace_is_the_smallest_of_principal_ones_that_holds_the_energy(energy):
    found = subspace(OTHERS, energy=energy)
    values = np.linalg.svd(OTHERS.double().numpy())[1] ** 2
    share = values.cumsum() / values.sum()
    count = found.basis.shape[1]
    assert found.share == pytest.approx(share[count - 1])
    assert found.share >= energy - 1e-9
    assert count == 1 or share[count - 2] < energy
    np.testing.assert_allclose(found.energies, values[:count] / len(OTHERS), rtol=1e-9)
    torch.testing.assert_close(found.basis.mT @ found.basis, torch.eye(count).double())


@pytest.mark.parametrize("shaped", [False, True])
def test_draws_inside_a_subspace_lie_inside_it(shaped):
    draws = SPACE.within(NORMS, draws=20, seed=0, shaped=shaped).double()
    assert 1 < SPACE.basis.shape[1] < D
    inside = draws @ SPACE.basis
    torch.testing.assert_close(inside @ SPACE.basis.mT, draws, atol=1e-5, rtol=0)


def test_rows_of_few_directions_span_no_more_than_they_do():
    low = OTHERS[:, :3] @ torch.randn(3, D, generator=GENERATOR)
    assert subspace(low, energy=1.0).basis.shape == (D, 3)


def test_isotropic_noise_alone_is_too_weak_for_what_lies_where_the_network_reads():
    """Where only the directions that activations fill are read, any change of the data's own kind stands out."""
    filled = torch.diag(torch.tensor([1.0] * 3 + [1e-9] * 9))
    change = torch.zeros(1, D)
    change[0, :3] = torch.tensor([1.0, 2.0, 2.0]) / 3
    read = lambda rows: rows[..., :3].double().square().sum(-1)  # noqa: E731
    over = [read(draws).mean() for draws in (
        isotropic(torch.ones(1), D, draws=MANY, seed=0), from_covariance(torch.ones(1), filled, draws=MANY, seed=0)
    )]  # fmt: skip
    assert float(read(change) / over[0]) == pytest.approx(D / 3, rel=0.03)
    assert float(read(change) / over[1]) == pytest.approx(1, rel=1e-3)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="covariance is 0"):
        from_covariance(NORMS, torch.zeros(D, D), draws=2, seed=0)
    with pytest.raises(UserError, match="no row has an error"):
        of_other_rows(NORMS, torch.zeros(4, D), draws=2, seed=0)
    for energy in (0.0, 1.5):
        with pytest.raises(UserError, match="energy is a share"):
            subspace(OTHERS, energy=energy)
    with pytest.raises(UserError, match="at least one principal direction"):
        rotated_in_bands(ERRORS, COVARIANCE, size=0, draws=2, seed=0)


def test_a_row_without_a_length_stays_where_it_is():
    assert float(at_norms(torch.randn(2, 1, D).double(), torch.zeros(1)).abs().max()) == 0
    assert float(rotated_about(torch.zeros(1, D), X[:1], draws=2, seed=0).abs().max()) == 0
