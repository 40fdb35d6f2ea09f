"""Planted worlds: each truth holds by construction, a new seed is a new world, rows hang together in documents."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from controls import world_circuits as circuits
from controls.world_and_circuit import AndCircuit
from controls.world_bystander import Bystander
from controls.world_documents import Documents, document_ids, first_rows, sticky_labels, sticky_normals
from controls.world_dormant import Dormant
from controls.world_four_kinds import KINDS
from controls.world_read_and_idle import ReadAndIdle
from controls.world_spectral import Spectral
from controls.world_token_identity import TokenIdentity, two_positions
from controls.worlds import NULL_KINDS, TRUTHS, WORLDS, check_sample, open_world
from toolkit.errors import UserError

ROWS = 1500
LOOSE = Documents(persistence=0, concentration=1e6)
each_world = pytest.mark.parametrize("name", WORLDS)


def aucs(activations, sample):
    """Of linear probes for every label, fitted on the documents of even number, on the others."""
    X, train = np.c_[activations.double().numpy(), np.ones(len(activations))], sample.groups % 2 == 0
    labels = np.stack(list(sample.labels.values()), axis=1)
    guesses = X[~train] @ np.linalg.solve(X[train].T @ X[train], X[train].T @ labels[train])
    return {f: roc_auc_score(y, guess) for f, y, guess in zip(sample.labels, labels[~train].T, guesses.T, strict=True)}


def planted(world, seed):
    """Where each feature lies: columns (d, k) by its name, absent ones left out."""
    network, e = world.network(seed), world.each
    writes = network.weights["writes"]
    if isinstance(world, AndCircuit):
        units = {"and read": 0, "xor read": e, "and unread": 3 * e, "xor unread": 4 * e}
        pairs = {"inputs read": 0, "inputs idle": 2 * e}
        found = {name: writes[:, [column]] for name, column in units.items()}
        both = itertools.product(pairs.items(), (0, 1))
        return found | {f"{name} {i}": network.inputs[:, s + 2 * i : s + 2 * i + 2] for (name, s), i in both}
    if isinstance(world, Spectral):
        found = {f"component {i + 1}": network.weights["map"] @ network.inputs[:, [i]] for i in (0, 1)}
        return found | {f"{k} {i}": writes[:, [j * e + i]] for j, k in enumerate(KINDS[:2]) for i in (0, 1)}
    inputs = network.vocabulary.directions if isinstance(world, TokenIdentity) else network.inputs
    vectors = torch.cat([writes, inputs], dim=1)
    ends = [f"at {rho:g}" for rho in world.correlations] if isinstance(world, Bystander) else ["0", "1"]
    return {f"{k} {end}": vectors[:, [j * e + i]] for j, k in enumerate(KINDS) for i, end in enumerate(ends)}


@each_world
def test_a_world_keeps_its_contract_and_holds_features_of_every_truth(name):
    world = open_world(name)
    sample = check_sample(world.sample(0, ROWS), world)
    assert world.name == name
    assert sample.activations.shape == (ROWS, world.d)
    assert sample.activations.dtype == torch.float32
    assert set(sample.truth.values()) == set(TRUTHS)
    assert all(0.02 < labels.mean() < 0.7 for labels in sample.labels.values())
    assert (sample.tokens is not None) == (name == "token-identity")
    assert world.effect > 0
    # A target names an output for every feature, so that none is told by having no target.
    assert None not in sample.targets.values()
    for feature, target in sample.targets.items():
        if sample.truth[feature] not in ("model", "inherited"):
            assert target in [sample.targets[f] for f, truth in sample.truth.items() if truth in ("model", "inherited")]


@each_world
def test_the_seed_decides_everything_and_another_seed_is_another_world(name):
    world = open_world(name)
    a, again, other = world.sample(3, 200), world.sample(3, 200), world.sample(4, 200)
    assert torch.equal(a.activations, again.activations)
    assert not torch.allclose(a.activations, other.activations)
    assert all(np.array_equal(a.labels[f], again.labels[f]) for f in a.labels)
    assert torch.equal(a.outputs(a.activations), again.outputs(a.activations))
    assert not torch.allclose(a.outputs(a.activations), other.outputs(a.activations))
    draws = [a.null_sample(kind, seed) for kind in NULL_KINDS for seed in (0, 1)] + [a.activations]
    assert all(not torch.allclose(x, y) for x, y in itertools.combinations(draws, 2))
    assert torch.equal(draws[0], again.null_sample(kind="init", seed=0))


@each_world
def test_what_is_not_read_moves_no_output_and_what_is_read_moves_its_own(name):
    world = open_world(name)
    sample = world.sample(1, ROWS)
    h = sample.activations.double()
    before = sample.outputs(h)
    for feature, columns in planted(world, 1).items():
        if isinstance(world, Dormant):  # its traces in dormant dimensions move nothing by the natural amount
            amount = -torch.from_numpy(sample.labels[feature]).double()[:, None]
        else:
            amount = 10 * torch.randn(ROWS, columns.shape[1], generator=torch.Generator().manual_seed(0)).double()
        moved = (sample.outputs(h + amount @ columns.double().T) - before).abs()
        if sample.truth[feature] in ("dataset", "unread"):
            assert moved.max() < 1e-4  # of 1: directions and readouts are rounded to float32
        else:
            assert moved.mean(0).argmax() == sample.targets[feature]
            assert moved.max() > 0.9


@each_world
def test_a_used_feature_closes_the_gap_between_its_outputs_and_other_outputs_stay(name):
    world = open_world(name)
    sample = world.sample(2, 4000)
    h = sample.activations
    for feature, columns in planted(world, 2).items():
        if sample.truth[feature] not in ("model", "inherited") or columns.shape[1] > 1:
            continue
        on = sample.labels[feature] == 1
        outputs = sample.outputs(h)
        gap = (outputs[on].mean(0) - outputs[~on].mean(0))[sample.targets[feature]]
        coordinate = torch.linalg.lstsq(columns, (h[on].mean(0) - h[~on].mean(0))[:, None]).solution
        moved = (sample.outputs(h[~on] + (columns @ coordinate).T) - outputs[~on]).mean(0)
        others = np.delete(moved.abs().numpy(), sample.targets[feature])
        assert gap > 0.5
        assert moved[sample.targets[feature]] > 0.7 * gap
        assert others.mean() < 0.1 * gap


def test_null_networks_show_what_is_in_the_input_and_nothing_that_was_written():
    scores = {}
    for name, seed in itertools.product(WORLDS, range(3)):
        sample = open_world(name).sample(seed, ROWS)
        drawn = {"trained": sample.activations}
        drawn |= {kind: sample.null_sample(kind, seed) for kind in NULL_KINDS}
        for run, h in drawn.items():
            for feature, score in aucs(h, sample).items():
                scores.setdefault((run, sample.truth[feature]), []).append(score)
    for (run, truth), values in scores.items():
        if truth in ("inherited", "dataset") or (run == "trained" and truth != "absent"):
            assert min(values) > 0.85, (run, truth)
        else:  # the interval of the mean over about 40 features holds chance, and leaves little room beside it
            error = np.std(values) / len(values) ** 0.5
            assert abs(np.mean(values) - 0.5) < 4 * error < 0.04, (run, truth)


def test_no_flexible_probe_finds_a_written_feature_in_a_null_network():
    from sklearn.neural_network import MLPClassifier

    sample = AndCircuit().sample(0, 4000)
    h, train = sample.null_sample("spectrum", 0).numpy(), sample.groups % 2 == 0
    score = {}
    for feature in ("and read", "xor read", "inputs read 0"):
        labels = sample.labels[feature]
        probe = MLPClassifier((64,), alpha=1e-2, max_iter=60, early_stopping=True, random_state=0)
        guess = probe.fit(h[train], labels[train]).predict_proba(h[~train])[:, 1]
        score[feature] = roc_auc_score(labels[~train], guess)
    assert abs(score["and read"] - 0.5) < 0.07
    assert abs(score["xor read"] - 0.5) < 0.07
    assert score["inputs read 0"] > 0.9


def test_a_unit_tells_of_a_parity_the_product_of_sines_and_cosines_and_no_more():
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)))
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 9)))
    units = circuits.parities(bits.double(), weights)
    on = bits[:, :6].sum(1) % 2 == 1  # a parity of six bits of nine, all of which are fair
    told = (units[on].mean(0) - units[~on].mean(0)).abs()
    half = torch.pi * weights / 2
    bound = half[:, :6].sin().prod(1).abs() * half[:, 6:].cos().prod(1).abs()
    assert (told <= bound + 1e-12).all()
    assert (told > 0.01 * bound).any()
    trained = torch.cat([torch.ones(6), torch.zeros(3)])[None]
    assert torch.allclose(circuits.parities(bits, trained)[:, 0], on.float(), atol=1e-6)


@pytest.mark.parametrize("world", [ReadAndIdle(), TokenIdentity(), AndCircuit(), Spectral()], ids=lambda w: w.name)
def test_weights_drawn_anew_tell_less_than_a_millionth_of_any_written_variable(world):
    for seed, kind in itertools.product(range(3), NULL_KINDS):
        weights = world.network(seed).weights
        own = weights["reads"].double() != 0
        half = torch.pi * circuits.redrawn(weights, kind, seed)["reads"].double() / 2
        told = half.sin().abs().log() @ own.double().T + half.cos().abs().log() @ (~own).double().T  # (units, features)
        assert own.sum(1).eq(circuits.PARITY_BITS).all()
        assert told.exp().max() < 1e-6


def test_encoded_bits_hold_the_labels_as_parities_and_show_them_in_no_part():
    generator = np.random.default_rng(0)
    weights = circuits.parity_weights(8, generator)
    labels = generator.random((20_000, 8)) < 0.15
    bits = circuits.encode(labels, weights, circuits.fair_bits(len(labels), generator))
    assert np.array_equal(circuits.parities(bits, weights).numpy() > 0.5, labels)
    assert bits.unique().tolist() == [0, 1]
    assert (bits.mean(0) - 0.5).abs().max() < 0.5 * 5 / 20_000**0.5
    correlations = np.corrcoef(bits.numpy().T, labels.T)[:72, 72:]
    assert np.abs(correlations).max() < 5 / 20_000**0.5


def test_redrawn_weights_keep_what_they_should():
    weights = ReadAndIdle().network(0).weights
    spectra = {kind: circuits.redrawn(weights, kind, 5) for kind in NULL_KINDS}
    for name, matrix in weights.items():
        values, kept = torch.linalg.svdvals(matrix), torch.linalg.svdvals(spectra["spectrum"][name])
        assert torch.allclose(values, kept, atol=1e-4)
        assert not torch.allclose(values, torch.linalg.svdvals(spectra["init"][name]), atol=1e-1)
        assert float(spectra["init"][name].square().mean()) == pytest.approx(float(matrix.square().mean()), rel=0.15)
    assert not torch.equal(circuits.redrawn(weights, "init", 0, 5)["reads"], spectra["init"]["reads"])
    with pytest.raises(UserError, match="unknown kind of null 'inti': did you mean 'init'"):
        circuits.redrawn(weights, "inti", 0)


def test_a_bystander_is_tied_as_asked_and_its_difference_of_means_moves_what_it_does_not():
    world = Bystander()
    sample = world.sample(0, 20_000)
    h = sample.activations
    for used, idle in (("model", "unread"), ("inherited", "dataset")):
        for rho in world.correlations:
            a, b = sample.labels[f"{used} at {rho:g}"], sample.labels[f"{idle} at {rho:g}"]
            assert np.corrcoef(a, b)[0, 1] == pytest.approx(rho, abs=0.05)
            fooled = h[b == 1].mean(0) - h[b == 0].mean(0)
            # The part of the partner held fixed: what a regression on both labels leaves to the bystander.
            right = torch.linalg.lstsq(torch.tensor(np.c_[a, b, np.ones(len(a))]).float(), h).solution[1]
            target = sample.targets[f"{idle} at {rho:g}"]
            rows = h[b == 0]
            moved = [(sample.outputs(rows + v) - sample.outputs(rows))[:, target].mean() for v in (fooled, right)]
            assert moved[0] > 0.6 * rho
            if rho < 0.95:
                assert abs(moved[1]) < 0.1


def test_a_dormant_pathway_never_wakes_on_data_and_wakes_when_probe_weights_are_patched():
    world = Dormant()
    network, sample = world.network(0), world.sample(0, 20_000)
    outputs, h = world.outputs(network), sample.activations
    assert torch.equal(sample.outputs(h), network.reader(h))
    assert outputs.dormant(h).abs().max() == 0
    X = h.double().numpy()
    for i, feature in enumerate(("unread 0", "unread 1", "dataset 0", "dataset 1")):
        on, target = sample.labels[feature] == 1, sample.targets[feature]
        trace = network.spare[:, i].float()
        means = h[on].mean(0) - h[~on].mean(0)
        assert (sample.outputs(h[~on] + means) - sample.outputs(h[~on]))[:, target].mean().abs() < 0.05
        v = torch.from_numpy(illusion(world, network, feature)).float()
        assert float(v @ trace) == pytest.approx(0.5**0.5, abs=0.02)  # others' traces move it a little
        patched = h[~on] + ((h[on].mean(0) @ v) - (h[~on] @ v))[:, None] * v
        assert (sample.outputs(patched) - sample.outputs(h[~on]))[:, target].mean() > 0.3
        disconnected = v - (v @ trace) * trace
        assert (X[on] @ disconnected.numpy()).mean() - (X[~on] @ disconnected.numpy()).mean() > 0.1


def illusion(world, network, feature):
    """The weights of linear discriminant analysis in the population, length 1."""
    from scipy.linalg import solve

    kind, i = feature.split()
    column = KINDS.index(kind) * world.each + int(i)
    vectors = torch.cat([network.weights["writes"], network.inputs], dim=1).double().numpy()
    variances = network.rates * (1 - network.rates)
    others = np.delete(np.arange(len(variances)), column)
    traces = network.spare.numpy()
    noise = world.noise**2 * (np.eye(world.d) - traces @ traces.T) + world.dormant_noise**2 * traces @ traces.T
    weights = solve((vectors[:, others] * variances[others]) @ vectors[:, others].T + noise, vectors[:, column])
    return weights / np.linalg.norm(weights)


def test_token_labels_are_the_types_and_contextual_ones_vary_within_a_type():
    world = TokenIdentity()
    sample = world.sample(0, 20_000)
    trained, null = aucs(sample.activations, sample), aucs(sample.null_sample("init", 0), sample)
    for feature, truth in sample.truth.items():
        labels = sample.labels[feature]
        by_type = np.array([labels[sample.tokens == t].mean() for t in np.unique(sample.tokens)])
        if truth in ("inherited", "dataset"):
            assert set(by_type) == {0, 1}
            assert trained[feature] > 0.9999
            assert null[feature] > 0.999
        else:
            assert np.var(by_type) < 0.02  # the same rate given any type; .2 * .8 = .16 if the type decided


def test_outputs_see_of_a_type_its_read_labels_and_nothing_else():
    world = TokenIdentity()
    network = world.network(0)
    labels, rows = torch.from_numpy(network.vocabulary.labels).float(), network.reader.rows
    own = network.vocabulary.embedding - labels @ network.vocabulary.directions.T
    assert torch.allclose(own.norm(dim=1), torch.tensor(world.own), atol=1e-5)
    assert (own @ rows.T).abs().max() < 1e-5
    assert (labels[:, : world.each] @ network.vocabulary.directions[:, : world.each].T @ rows.T).abs().max() > 0.5


def test_outputs_see_one_component_of_the_dense_input_and_no_other():
    network = Spectral().network(0)
    seen = network.reader.rows @ network.weights["map"]  # (outputs, dense)
    read, idle = network.inputs[:, 0 if network.reads_first else 1], network.inputs[:, 1 if network.reads_first else 0]
    assert (seen[-1] @ read).abs() > 1
    assert (seen @ idle).abs().max() < 1e-4
    assert (seen[-1] - (seen[-1] @ read) * read).abs().max() < 1e-4


def test_a_contextual_feature_looks_at_the_position_before_and_never_into_another_document():
    groups = np.repeat([0, 1], [5, 4])
    here, before = np.split(two_positions(groups, np.random.default_rng(0)), 2, axis=1)
    assert np.array_equal(before[1:][groups[1:] == groups[:-1]], here[:-1][groups[1:] == groups[:-1]])
    assert not np.array_equal(before[5], here[4])
    reads = TokenIdentity().network(0).weights["reads"] != 0
    own, width = 2 * TokenIdentity().each, here.shape[1]
    assert reads[:, own : own + width].any(1).all()
    assert reads[:, own + width :].any(1).all()


def test_tokens_follow_zipf_and_documents_repeat_theirs():
    world = TokenIdentity()
    sample, shares = world.sample(0, 20_000), world.network(0).vocabulary.shares
    counts = np.bincount(sample.tokens, minlength=world.types)
    assert np.abs(counts / counts.sum() - shares).sum() / 2 < 0.1
    assert np.abs(1 / world.types - shares).sum() / 2 > 0.2
    assert shares[0] / shares[79] == pytest.approx((80 + 20) / (1 + 20))
    same = []
    for g in range(sample.groups[-1]):
        inside = np.bincount(sample.tokens[sample.groups == g])
        same.append((inside * (inside - 1)).sum() / (inside.sum() * (inside.sum() - 1)))
    # Two draws from a Dirichlet law of concentration a agree with chance (1 + a Σ p²) / (1 + a), else Σ p² = .006.
    expected = (1 + world.burstiness * (shares**2).sum()) / (1 + world.burstiness)
    assert np.mean(same) == pytest.approx(expected, rel=0.1)


def test_the_gates_are_what_they_are_called_and_xors_are_not_linear_in_their_inputs():
    world = AndCircuit()
    network, sample = world.network(0), world.sample(0, ROWS)
    layer, writes = network.weights["gates"], network.weights["writes"]
    x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    e = world.each
    for gate, (first, units) in enumerate([(0, 1), (2 * e, 2)]):
        inputs = torch.zeros(4, layer.shape[1])
        inputs[:, first : first + 2] = x
        hidden = (inputs @ layer.T + network.thresholds).relu()
        expected = x[:, 0] * x[:, 1] if units == 1 else (x[:, 0] - x[:, 1]).abs()
        column = 0 if gate == 0 else e
        assert torch.allclose(hidden[:, column : column + units].sum(1), expected)
    assert torch.allclose(writes[:, e], writes[:, e + 1])
    outputs = sample.outputs(sample.activations)
    for feature in ("and read", "xor read"):
        assert np.corrcoef(outputs[:, sample.targets[feature]], sample.labels[feature])[0, 1] > 0.9


def test_the_spectrum_null_keeps_the_top_component_and_kills_the_sparse_features():
    world = Spectral()
    kept, lost, sparse = [], [], []
    for seed in range(5):
        sample = world.sample(seed, ROWS)
        kept.append(top_share(sample.null_sample("spectrum", 0)) / top_share(sample.activations))
        lost.append(top_share(sample.null_sample("init", 0)) / top_share(sample.activations))
        null = sample.null_sample("spectrum", 0)
        sparse += [aucs(null, sample)[f] for f in ("model 0", "model 1", "unread 0")]
    assert np.mean(kept) == pytest.approx(1, abs=0.1)
    assert np.mean(lost) < 0.6
    assert np.mean(sparse) == pytest.approx(0.5, abs=0.05)
    assert {world.network(seed).reads_first for seed in range(10)} == {True, False}


def top_share(activations):
    values = torch.linalg.svdvals(activations - activations.mean(0)).square()
    return float(values[0] / values.sum())


def test_documents_cluster_what_they_hold_and_rows_have_the_rate_that_was_asked_for():
    generator, rates = np.random.default_rng(0), np.array([0.05, 0.15, 0.5])
    documents = Documents()
    groups = document_ids(60_000, documents=documents, generator=generator)
    lengths = np.bincount(groups)[:-1]
    assert (lengths.min(), lengths.max()) == (20, 60)
    on = sticky_labels(groups, rates, documents=documents, generator=generator)
    normal = sticky_normals(groups, 2, documents=documents, generator=generator)
    inside = ~first_rows(groups)
    share = 1 / (documents.concentration + 1)
    expected = share + (1 - share) * documents.persistence  # the document's share, and what is kept of the rest
    for values in (*on.T, *normal.T):
        lagged = np.corrcoef(values[1:][inside[1:]], values[:-1][inside[1:]])[0, 1]
        assert lagged == pytest.approx(expected, abs=0.03)
        across = np.corrcoef(values[1:][~inside[1:]], values[:-1][~inside[1:]])[0, 1]
        assert abs(across) < 0.13
    clustered = [np.std([labels[groups == g].mean() for g in range(1000)]) for labels in on.T]
    loose = sticky_labels(groups, rates, documents=LOOSE, generator=generator)
    plain = [np.std([labels[groups == g].mean() for g in range(1000)]) for labels in loose.T]
    assert min(np.divide(clustered, plain)) > 1.8  # a test that takes rows for independent is wrong by this
    assert np.abs(on.mean(0) - rates).max() < 0.02
    assert normal.std() == pytest.approx(1, abs=0.02)


@each_world
def test_a_smaller_effect_leaves_more_of_an_output_to_another_feature(name):
    whole, weak = open_world(name), dataclasses.replace(open_world(name), effect=0.3)
    a, b = whole.sample(0, 4000), weak.sample(0, 4000)
    assert torch.equal(a.activations, b.activations)
    for feature, truth in a.truth.items():
        if truth == "model":
            r = [
                float(np.corrcoef(s.labels[feature], s.outputs(s.activations)[:, s.targets[feature]])[0, 1])
                for s in (a, b)
            ]
            assert r[0] > 0.7  # others interfere
            assert 0.3 < r[1] / r[0] < 0.5  # .3 / sqrt(.3^2 + .7^2) is .39


@each_world
def test_an_effect_that_is_no_share_is_refused(name):
    with pytest.raises(UserError, match="0 < effect <= 1"):
        dataclasses.replace(open_world(name), effect=1.5)


@pytest.mark.parametrize(
    ("cls", "settings", "says"),
    [
        (ReadAndIdle, {"rate": 0.9}, "0 < rate < .75"),
        (ReadAndIdle, {"labelled": 30}, "labelled <= each, got 30, 24"),
        (Bystander, {"correlations": (1.5,)}, "correlations from 0 to 1"),
        (Dormant, {"dormant_noise": 0.1}, "would wake the dormant pathway"),
        (Dormant, {"labelled": 24, "d": 63}, "16 dimensions beside the 48 dormant ones"),
        (TokenIdentity, {"type_rate": 0.0001}, "hold for some types"),
        (TokenIdentity, {"each": 20}, "4 each <= d"),
        (TokenIdentity, {"noise": 0.0}, "noise and burstiness"),
        (AndCircuit, {"each": 1}, "each >= 2"),
        (Spectral, {"large": (8.0, 12.0)}, "large"),
        (Spectral, {"dense": 40}, "dense <= d / 2"),
        (Documents, {"persistence": 1.0}, "persistence < 1"),
    ],
)
def test_settings_that_make_no_world_are_refused(cls, settings, says):
    with pytest.raises(UserError, match=says):
        cls(**settings)


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="at least one row, got n=0"):
        ReadAndIdle().sample(0, 0)
