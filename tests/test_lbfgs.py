"""Batched L-BFGS against scipy's, one problem at a time."""

import pytest
import torch
from scipy.optimize import minimize

from toolkit.lbfgs import minimise

CENTRES = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.3, -0.7, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)


def rosenbrock(x, which):
    """Four-dimensional, its minimum at all ones whatever the scale; `which` picks how steep the valley is."""
    steep = torch.tensor([1.0, 100.0, 10.0], dtype=x.dtype)[which]
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = (steep[:, None] * (leaf[:, 1:] - leaf[:, :-1] ** 2) ** 2 + (1 - leaf[:, :-1]) ** 2).sum(1)
        slope = torch.autograd.grad(value.sum(), leaf)[0]
    return value.detach(), slope


def test_each_problem_reaches_its_minimum():
    found = minimise(rosenbrock, CENTRES, tolerance=1e-8)
    assert found.converged.all()
    torch.testing.assert_close(found.parameters, torch.ones_like(CENTRES), atol=1e-6, rtol=0)
    assert found.gradient.max() <= 1e-8


def test_it_ends_where_scipys_does():
    for i in range(3):
        which = torch.tensor([i])

        def one(x, which=which):
            value, slope = rosenbrock(torch.from_numpy(x)[None], which)
            return value.item(), slope[0].numpy()

        theirs = minimize(one, CENTRES[i].numpy(), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
        ours = minimise(rosenbrock, CENTRES, tolerance=1e-9).parameters[i]
        torch.testing.assert_close(ours, torch.from_numpy(theirs.x), atol=1e-5, rtol=0)


def test_problems_do_not_touch_one_another():
    together = minimise(rosenbrock, CENTRES, tolerance=1e-6)
    for i in range(3):
        alone = minimise(lambda x, which, i=i: rosenbrock(x, which + i), CENTRES[i : i + 1], tolerance=1e-6)
        torch.testing.assert_close(alone.parameters[0], together.parameters[i], atol=1e-9, rtol=0)


def test_problems_that_have_ended_are_no_longer_asked_for():
    asked = []

    def watched(x, which):
        asked.append(which.tolist())
        return rosenbrock(x, which)

    start = CENTRES.clone()
    start[[0, 2]] = 1.0  # their minimum
    minimise(watched, start, tolerance=1e-6)
    assert asked[0] == [0, 1, 2]
    assert asked[-1] == [1]


def test_steps_at_most_are_kept_and_said():
    found = minimise(rosenbrock, CENTRES, tolerance=1e-12, most=3)
    assert found.iterations == 3
    assert not found.converged.any()
    assert found.exhausted.all()
    assert not minimise(rosenbrock, CENTRES, tolerance=1e-8).exhausted.any()
    first = rosenbrock(CENTRES, torch.arange(3))[0]
    assert (found.values < first).all()


def test_a_problem_that_nothing_takes_down_has_not_run_out_of_steps():
    def walled(x, which):
        value, slope = rosenbrock(x, which)
        return torch.where((which == 0) & (x != CENTRES[which]).any(1), 1e9, value), slope

    found = minimise(walled, CENTRES, tolerance=1e-12, most=3)
    assert found.exhausted.tolist() == [False, True, True]
    assert not found.converged[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_minimum_that_rounding_does_not_let_it_improve_ends_the_search(dtype):
    def parabola(x, which):
        return (x**2).sum(1) + 1e6, 2 * x

    found = minimise(parabola, torch.full((2, 3), 5.0, dtype=dtype), tolerance=1e-30, most=200)
    assert found.parameters.abs().max() < 1
    assert not found.exhausted.any()
