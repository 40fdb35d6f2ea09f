"""The expected loss without sampling: against closed forms, samples and finite differences; its training."""

import numpy as np
import pytest
import torch

from toolkit import toy
from toolkit.configs import ToyModel, ToyTraining
from toolkit.errors import UserError
from toolkit.phases import analytic_losses, boundary
from toolkit.quadrature import _gradients, expected_loss, train_exactly
from toolkit.samplers import sample


def drawn(features, hidden, output, instances=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    model = ToyModel(features=features, hidden=hidden, instances=instances, output=output)
    W, b = (
        0.8 * torch.randn(instances, hidden, features, generator=g),
        0.2 * torch.randn(instances, features, generator=g),
    )
    densities = 0.05 + 0.95 * torch.rand(instances, features, generator=g)
    return model, W, b, {"densities": densities, "importances": 0.2 + torch.rand(instances, features, generator=g)}


@pytest.mark.parametrize(("features", "hidden"), [(1, 1), (2, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("output", ["relu", "linear"])
def test_it_is_the_mean_over_samples(features, hidden, output):
    model, W, b, data = drawn(features, hidden, output)
    found = expected_loss(model, W, b, **data)
    x = sample(data["densities"], 400_000, seed=1)
    rows = torch.stack([toy.loss(model, W, b, part, data["importances"]) for part in x.split(20_000, dim=1)])
    error = rows.std(0) / len(rows) ** 0.5
    assert ((found - rows.mean(0)).abs() < 4.5 * error).all()
    assert error.max() < 0.02 * found.max()  # and the comparison is sharp


def test_closed_forms_of_two_features_in_one_dimension():
    model = ToyModel(features=2, hidden=1, instances=2)
    for p in (0.05, 0.5, 1.0):
        for extra in (0.3, 1.0, 4.0):
            data = {"densities": torch.full((2, 2), p), "importances": torch.tensor([[1.0, extra]] * 2)}
            W = torch.tensor([[[1.0, -1.0]], [[1.0, 0.0]]])
            b = torch.tensor([[0.0, 0.0], [0.0, p / 2]])
            theory = analytic_losses(2, np.array([extra]), np.array([p]))[:, 0, 0]
            assert expected_loss(model, W, b, **data).tolist() == pytest.approx([theory[2], theory[0]], rel=1e-5)


def test_closed_forms_of_three_features_in_two_dimensions():
    model, p = ToyModel(features=3, hidden=2, instances=1), 0.4
    data = {"densities": torch.full((1, 3), p), "importances": torch.tensor([[1.0, 1.0, 0.5]])}
    theory = analytic_losses(3, np.array([0.5]), np.array([p]))[:, 0, 0]
    shared = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]]])  # the two least important: antipodal
    assert expected_loss(model, shared, torch.zeros(1, 3), **data).item() == pytest.approx(theory[2], rel=1e-5)
    dropped, bias = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), torch.tensor([[0.0, 0.0, p / 2]])
    assert expected_loss(model, dropped, bias, **data).item() == pytest.approx(theory[0], rel=1e-5)


@pytest.mark.parametrize("output", ["relu", "linear"])
def test_gradients_are_finite_differences(output):
    _, W, b, data = drawn(3, 2, output, instances=1)
    weights, bias = W[0].T.double().numpy().copy(), b[0].double().numpy().copy()
    p, importance = data["densities"][0].double().numpy(), data["importances"][0].double().numpy()
    dW, db, spare = np.empty((3, 2)), np.empty(3), (np.empty((3, 2)), np.empty(3))
    _gradients(weights, bias, p, importance, output == "relu", dW, db)
    for array, gradient in ((weights, dW), (bias, db)):
        for at in np.ndindex(*array.shape):
            values = []
            for step in (1e-5, -2e-5):
                array[at] += step
                values.append(_gradients(weights, bias, p, importance, output == "relu", *spare))
            array[at] += 1e-5
            assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient[at], abs=2e-5)


def test_training_on_the_expectation_ends_where_training_on_samples_does_and_no_higher():
    model = ToyModel(features=3, hidden=2, instances=8)
    data = {"densities": torch.full((8, 3), 0.1), "importances": torch.ones(8, 3)}
    exact = train_exactly(model, ToyTraining(toy_steps=1000, toy_lr=1e-2), **data)
    sampled = toy.train(model, ToyTraining(toy_steps=3000), **data)
    theirs = expected_loss(model, sampled.W, sampled.b, **data)
    assert exact.loss.min() <= theirs.min() * 1.0001
    assert exact.loss.min().item() == pytest.approx(theirs.min().item(), rel=0.01)
    assert exact.W.dtype == torch.float64


def test_the_boundary_is_where_the_two_losses_meet():
    density, importance = np.geomspace(0.01, 1, 400), np.array([0.1, 1.0, 10.0])
    # Two into one: p = 4/7 at equal importance, .158 at .1 or 10 (solve p(1 + I)/6 = min(1, I)(1/3 - p/4)).
    assert boundary(analytic_losses(2, importance, density), density).tolist() == pytest.approx(
        [0.1 / 3 / (1.1 / 6 + 0.025), 4 / 7, 1 / 3 / (11 / 6 + 0.25)], rel=1e-3
    )


def test_more_than_three_features_or_a_hidden_relu_are_refused():
    data = {"densities": torch.ones(16, 4), "importances": torch.ones(16, 4)}
    with pytest.raises(UserError, match="up to 3 features and a linear hidden layer, got 4 features"):
        train_exactly(ToyModel(features=4), ToyTraining(), **data)
    with pytest.raises(UserError, match="a relu hidden layer"):
        train_exactly(ToyModel(features=2, hidden_activation="relu"), ToyTraining(), **data)
