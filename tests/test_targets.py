"""Targets: every row its due, batches that follow the step alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from toolkit import toy
from toolkit.configs import ToyModel, ToyTraining
from toolkit.errors import UserError
from toolkit.samplers import sample
from toolkit.targets import rows_target, tms_target


def numbered(count):
    """Rows that hold their own number, so that a batch tells which rows it drew."""
    return torch.arange(count, dtype=torch.float32)[:, None].expand(-1, 2).contiguous()


def drawn(target, steps, rows):
    return torch.cat([target.batches(step, rows)[0, :, 0] for step in steps]).long()


@pytest.mark.parametrize(("count", "rows"), [(12, 4), (10, 4), (7, 3), (5, 13), (1, 3), (6, 6)])
def test_every_epoch_holds_every_row_exactly_once_however_batches_straddle_it(count, rows):
    stream = drawn(rows_target(numbered(count), seed=1), range(5 * count), rows)
    epochs = stream[: len(stream) // count * count].reshape(-1, count)
    assert len(epochs) == 5 * rows
    assert torch.equal(epochs.sort(1).values, torch.arange(count).expand_as(epochs))


def test_epochs_come_in_different_orders_that_follow_the_seed():
    target = rows_target(numbered(50), seed=1)
    first, second = drawn(target, [0], 50), drawn(target, [1], 50)
    assert not torch.equal(first, second)
    assert not torch.equal(first, first.sort().values)
    assert torch.equal(first, drawn(rows_target(numbered(50), seed=1), [0], 50))
    assert not torch.equal(first, drawn(rows_target(numbered(50), seed=2), [0], 50))


@pytest.mark.parametrize("weights", [None, torch.rand(30, generator=torch.Generator().manual_seed(0))])
def test_a_batch_depends_on_its_step_and_not_on_what_was_drawn_before(weights):
    x = numbered(30)
    target = rows_target(x, weights=weights, seed=3)
    drawn(target, range(9), 8)
    assert torch.equal(target.batches(9, 8), rows_target(x, weights=weights, seed=3).batches(9, 8))
    assert not torch.equal(target.batches(9, 8), target.batches(8, 8))


def test_a_rows_target_says_its_width_and_knows_no_directions():
    target = rows_target(torch.randn(9, 4), name="nine")
    assert (target.name, target.d, target.instances, target.directions) == ("nine", 4, 1, None)
    assert target.batches(0, 5).shape == (1, 5, 4)


def test_weighted_rows_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([0.0, 1.0, 5.0, 0.0, 2.0, 12.0, 0.0])
    counts = torch.bincount(drawn(rows_target(numbered(7), weights=weights), range(40), 1000), minlength=7).double()
    assert (counts[weights == 0] == 0).all()
    seen, expected = counts[weights > 0], 40_000 * weights[weights > 0] / 20
    assert ((seen - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.999, 3)
    # The bound can tell: with a tenth more of one row it fails.
    assert ((seen + torch.tensor([200.0, 0, 0, 0]) - expected) ** 2 / expected).sum() > stats.chi2.ppf(0.999, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_row_that_is_no_number_is_named(value):
    x = torch.ones(6, 3)
    rows_target(x)
    x[5, 1] = x[4, 0] = value
    with pytest.raises(UserError, match="row 4 of measured holds NaN or infinity"):
        rows_target(x, name="measured")


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(2, 3, 4), torch.ones(0, 4)])
def test_what_is_no_matrix_with_rows_is_refused_with_its_shape(x):
    with pytest.raises(UserError, match="shape \\(" + ", ".join(map(str, x.shape))):
        rows_target(x)


@pytest.mark.parametrize(
    "weights",
    [
        torch.ones(5),
        torch.ones(6, 1),
        torch.zeros(6),
        torch.tensor([1.0, 1.0, -0.1, 1.0, 1.0, 1.0]),
        torch.tensor([1.0, 1.0, float("nan"), 1.0, 1.0, 1.0]),
        torch.tensor([1.0, 1.0, float("inf"), 1.0, 1.0, 1.0]),
    ],
)
def test_weights_that_are_no_weights_of_the_rows_are_refused(weights):
    rows_target(torch.ones(6, 2), weights=torch.ones(6))
    with pytest.raises(UserError, match="weights must be"):
        rows_target(torch.ones(6, 2), weights=weights)


@pytest.mark.parametrize("hidden_activation", ["linear", "relu"])
def test_a_tms_target_hands_out_the_hidden_activations_of_the_sampled_features(hidden_activation):
    model = ToyModel(features=6, hidden=3, instances=4, density=(0.1, 0.8), hidden_activation=hidden_activation)
    trained = toy.train(model, ToyTraining(toy_steps=20, toy_batch=64))
    target = tms_target(trained, seed=11)
    for step, rows in ((0, 50), (7, 33)):
        expected = trained.hidden(sample(toy.density(model), rows, seed=11, step=step))
        torch.testing.assert_close(target.batches(step, rows), expected)
        assert expected.abs().max() > 0.1
    assert not torch.equal(target.batches(0, 50), target.batches(1, 50))
    assert not torch.equal(target.batches(0, 50), tms_target(trained, seed=12).batches(0, 50))
    assert (target.name, target.d, target.instances) == ("tms", 3, 4)
    assert torch.equal(target.directions, trained.W.mT)


def test_batches_of_a_tms_target_sum_features_times_directions_row_by_row():
    model = ToyModel(features=3, hidden=2, instances=1, density=1.0)
    W = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]]])
    trained = toy.TrainedToy(
        model, W, torch.zeros(1, 3), torch.zeros(1), torch.zeros(0, 1), toy.density(model), torch.ones(1, 3)
    )
    x = sample(toy.density(model), 4, seed=0)[0].numpy()
    expected = np.stack([x[:, 0] - x[:, 2], 2 * x[:, 1] + x[:, 2]], 1)
    np.testing.assert_allclose(tms_target(trained).batches(0, 4)[0], expected, rtol=1e-5)
