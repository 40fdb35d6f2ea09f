"""Networks of any depth: against the compiled toy models, by hand, and their training."""

import pytest
import torch

from toolkit import toy
from toolkit.configs import ToyModel, ToyTraining
from toolkit.descent import learning_rates
from toolkit.errors import UserError
from toolkit.networks import Layer, Network, autoencoder, error, forward, train_network
from toolkit.samplers import sample
from toolkit.sources import Batch, Source, grouped, sparse


def toy_source(density, instances, features, seed):
    """The very batches that toy.train draws."""
    chances, ones = torch.full((instances, features), density), torch.ones(instances, 1, features)

    def batch(step, rows):
        x = sample(chances, rows, seed=seed, step=step)
        return Batch(x, x, ones)

    return Source(instances, features, features, batch)


def test_a_tied_autoencoder_takes_the_same_steps_as_the_compiled_toy_model():
    training = ToyTraining(toy_steps=20, toy_batch=200, toy_lr=1e-2)
    compiled = toy.train(ToyModel(features=6, hidden=2, instances=3, density=(0.3,)), training, seed=4)
    start = toy.start(compiled.model, 4)
    network = autoencoder(6, 2)

    class Start:
        """A checkpoint that hands out the compiled model's first weights."""

        def load(self):
            zeros = {name: torch.zeros(2, *shape) for name, shape in (("W_1", (3, 6, 2)), ("b_2", (3, 6)))}
            kept = {f"kept_{name}": value[:0] for name, value in zeros.items()}
            moments = {f"moments_{name}": value for name, value in zeros.items()}
            return {
                "W_1": start["W"].clone(),
                "b_2": start["b"].clone(),
                **moments,
                **kept,
                "history": torch.zeros(0, 3),
            }

        def save(self, state):
            pass

    trained = train_network(network, toy_source(0.3, 3, 6, 4), training, checkpoint=Start())
    torch.testing.assert_close(trained.W, compiled.W, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trained.history, compiled.history, rtol=1e-3, atol=1e-5)
    assert (trained.W - start["W"].mT).abs().mean() > 0.02


def test_the_forward_pass_by_hand():
    network = Network(2, (Layer(1, "relu"), Layer(2, "linear", bias=False, tied=True)))
    parameters = {"W_1": torch.tensor([[[1.0], [-2.0]]]), "b_1": torch.tensor([[0.5]])}
    hidden, out = forward(network, parameters, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert hidden.tolist() == [[[1.5], [0.0]]]
    assert out.tolist() == [[[1.5, -3.0], [0.0, 0.0]]]


def test_the_error_weighs_outputs_and_rows_and_takes_any_power():
    answer = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])
    batch = Batch(answer, torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.5], [7.0, 7.0]]]))
    assert error(answer, batch).item() == pytest.approx((1 + 4.5) / 2)
    assert error(answer, batch, 3.0).item() == pytest.approx((1 + 13.5) / 2)


@pytest.mark.parametrize("name", ["linear", "relu", "gelu", "silu", "softplus", "tanh", "leaky_relu", "abs", "topk-2"])
def test_every_activation_trains(name):
    source = sparse(torch.full((2, 4), 0.3), torch.ones(2, 4), seed=0)
    trained = train_network(autoencoder(4, 3, output=name), source, ToyTraining(toy_steps=300, toy_lr=1e-2))
    assert trained.history[-20:].mean() < 0.8 * trained.history[:20].mean()


def test_topk_keeps_the_largest_positive_entries():
    network = Network(3, (Layer(3, "topk-2", bias=False),))
    out = forward(network, {"W_1": torch.eye(3)[None]}, torch.tensor([[[3.0, 1.0, 2.0], [-1.0, -2.0, 4.0]]]))[0]
    assert out.tolist() == [[[3.0, 0.0, 2.0], [0.0, 0.0, 4.0]]]


def test_a_frozen_layer_stays_as_drawn_and_its_bias_too_while_the_next_one_learns():
    network = Network(4, (Layer(16, frozen=True), Layer(4, "linear")))
    source = sparse(torch.full((2, 4), 0.5), torch.ones(2, 4), seed=0)
    trained = train_network(network, source, ToyTraining(toy_steps=50), snapshots=(0, 50))
    for name, moves in (("W_1", False), ("b_1", False), ("W_2", True), ("b_2", True)):
        before, after = trained.snapshots[name]
        assert torch.equal(before, after) is not moves, name
        assert torch.equal(after, trained.parameters[name])
    assert trained.parameters["b_1"].abs().min() > 0


def test_snapshots_are_the_parameters_before_the_step():
    source = sparse(torch.full((1, 4), 0.5), torch.ones(1, 4), seed=0)
    whole = train_network(autoencoder(4, 2), source, ToyTraining(toy_steps=30), snapshots=(0, 7, 30))
    assert whole.snapshots["W_1"].shape == (3, 1, 4, 2)
    x, step7 = source.batch(7, 1024), {name: value[1] for name, value in whole.snapshots.items()}
    assert error(forward(whole.network, step7, x.x)[-1], x).item() == pytest.approx(whole.history[7].item(), rel=1e-5)


def test_instances_are_the_same_alone_and_among_many():
    training = ToyTraining(toy_steps=30, toy_batch=64)
    many = train_network(autoencoder(4, 2), sparse(torch.full((3, 4), 0.3), torch.ones(3, 4), seed=0), training)
    alone = train_network(autoencoder(4, 2), sparse(torch.full((1, 4), 0.3), torch.ones(1, 4), seed=0), training)
    torch.testing.assert_close(many.W[:1], alone.W)


def test_weight_decay_shrinks_weights_and_no_bias():
    source = sparse(torch.full((1, 4), 1e-6), torch.zeros(1, 4), seed=0)  # importance 0: no gradient at all
    start = train_network(autoencoder(4, 2), source, ToyTraining(toy_steps=1))
    end = train_network(autoencoder(4, 2), source, ToyTraining(toy_steps=100, toy_lr=0.1), weight_decay=0.1)
    rates = learning_rates(100, 0.1)
    assert end.W.norm() / start.W.norm() == pytest.approx((1 - 0.1 * rates).prod(), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Layer(3, "rleu"), "did you mean 'relu'"),
        (lambda: Layer(3, "topk-0"), "unknown activation 'topk-0'"),
        (lambda: Layer(0), "size must be positive, got 0"),
        (lambda: Layer(3, tied=True, frozen=True), "cannot be frozen"),
        (lambda: Network(3, ()), "at least one layer"),
        (lambda: Network(3, (Layer(2), Layer(4, tied=True))), r"layer 2 of sizes \[3, 2, 4\] is tied"),
        (
            lambda: train_network(autoencoder(3, 2), sparse(torch.ones(1, 4), torch.ones(1, 4), seed=0)),
            "maps 3 inputs to 3 outputs, the source has 4 and 4",
        ),
    ],
)
def test_a_contradiction_is_one_line(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_what_cannot_be_trained_or_kept_is_one_line():
    with pytest.raises(UserError, match=r"layer 3 of sizes .* is tied: .* must have a W of its own"):
        Network(20, (Layer(10), Layer(20, tied=True), Layer(10, tied=True)))
    source = grouped(torch.full((2,), 0.1), ((0, 1, 2),), kind="correlated", seed=0)
    with pytest.raises(UserError, match=r"snapshots must lie in 0 to toy_steps=5, got \[9\]"):
        train_network(autoencoder(3, 2), source, ToyTraining(toy_steps=5), seed=0, snapshots=(0, 9))
