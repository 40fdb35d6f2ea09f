"""Description length: a complete code, no bargain on labels of chance, bargains on labels that rows show; an oracle."""

import math
from itertools import product

import jaxtyping
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from toolkit import code_length as module
from toolkit.code_length import SHARES, code_length
from toolkit.errors import UserError
from toolkit.probes import LDAProbe, LinearProbe, LowRankProbe, MeanDifferenceProbe, MLPProbe

PROBES = [LinearProbe(l2=0.1), LinearProbe(loss="squared", l2=0.1), LowRankProbe(1, l2=0.1), LDAProbe(shrinkage=0.5),
          MeanDifferenceProbe(), MLPProbe(3, l2=0.1, max_steps=20)]  # fmt: skip


def world(*, documents=40, length=5, d=4, classes=3, signal=0.0, seed=0):
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(documents), length)
    y = draw.integers(0, classes, len(groups))
    X = draw.standard_normal((len(groups), d))
    X[np.arange(len(y)), y] += signal
    return X, y, groups


@pytest.mark.parametrize("probe", PROBES, ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_kraft_the_sum_of_two_to_minus_the_bits_over_all_labelings_is_one(probe, classes):
    rows = 8 if classes == 2 else 5
    X = np.random.default_rng(1).standard_normal((rows, 2))
    controls = np.array(list(product(range(classes), repeat=rows))).T  # (rows, classes ** rows)
    found = code_length(probe, X, np.arange(rows) % classes, controls=controls, shares=(0.2, 0.4, 0.6, 1.0))
    assert len(found.blocks) > 2
    assert np.exp2(-found.control_bits).sum() == pytest.approx(1, abs=1e-9)
    assert found.control_bits.std() > 0.1  # not the uniform code, which would sum to 1 as well


def test_a_probe_that_has_seen_the_labels_it_codes_breaks_krafts_sum(monkeypatch):
    whole = module._coded
    monkeypatch.setattr(module, "_coded", lambda p, data, y, before, now: whole(p, data, y, before | now, now))
    X = np.random.default_rng(1).standard_normal((8, 2))
    controls = np.array(list(product(range(2), repeat=8))).T
    found = code_length(LinearProbe(l2=1e-3), X, np.arange(8) % 2, controls=controls, shares=(0.2, 0.4, 0.6, 1.0))
    assert np.exp2(-found.control_bits).sum() > 1.5


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_labels_of_chance_cost_their_entropy_and_no_less(probe):
    """The mean over draws of the code length is at least the entropy, whatever the probe (Shannon)."""
    X, y, groups = world()
    odds = np.array([0.6, 0.3, 0.1])
    controls = np.random.default_rng(2).choice(3, p=odds, size=(len(y), 200))
    found = code_length(probe, X, y, groups=groups, controls=controls, shares=(0.1, 0.3, 1.0))
    entropy = -len(y) * (odds * np.log2(odds)).sum()
    error = found.control_bits.std() / math.sqrt(200)
    assert found.control_bits.mean() > entropy - 4 * error
    if isinstance(probe, LinearProbe):  # no flexible probe that learns chance by heart
        assert found.control_bits.mean() < 1.25 * entropy
    assert found.uniform_bits == pytest.approx(len(y) * math.log2(3))


def test_labels_that_rows_show_cost_little_and_so_do_controls_only_where_they_do():
    X, y, groups = world(documents=100, signal=12.0)
    shuffled = np.random.default_rng(3).permutation(y)
    found = code_length(LinearProbe(l2=1e-3), X, y, groups=groups, controls=np.stack([y, shuffled], 1))
    assert found.bits < 0.15 * found.uniform_bits
    assert found.compression == pytest.approx(found.uniform_bits / found.bits)
    assert found.control_bits[0] == pytest.approx(found.bits, rel=1e-6)
    assert found.control_bits[1] > 0.95 * found.uniform_bits
    assert "compression" in str(found)


def test_of_two_labels_at_the_same_final_accuracy_the_one_that_takes_longer_to_learn_costs_more():
    """What accuracy does not tell: a direction against as many arbitrary types."""
    draw = np.random.default_rng(4)
    types, groups = draw.integers(0, 30, 900), np.repeat(np.arange(90), 10)
    easy = (np.arange(30) < 15).astype(int)
    X = np.eye(30)[types] + np.outer(easy[types], np.ones(30))
    control = draw.permutation(easy)[types, None]
    found = code_length(LinearProbe(l2=1e-3), X, easy[types], groups=groups, controls=control)
    assert found.control_bits[0] > 2 * found.bits
    assert found.control_bits[0] < 0.3 * found.uniform_bits


def by_scikit_learn(X, y, block_of, classes, l2):
    """The same code by a plain loop."""
    bits = np.full(len(y), math.log2(classes))
    for block in range(1, block_of.max() + 1):
        past, now = block_of < block, block_of == block
        seen = np.unique(y[past])
        chance = np.zeros((now.sum(), classes))
        if len(seen) == 1:
            chance[:, seen] = 1
        else:
            scaler = StandardScaler().fit(X[past])
            theirs = LogisticRegression(C=1 / (l2 * past.sum()), tol=1e-10, max_iter=10_000)
            chance[:, seen] = theirs.fit(scaler.transform(X[past]), y[past]).predict_proba(scaler.transform(X[now]))
        mixed = chance * past.sum() / (1 + past.sum()) + 1 / (1 + past.sum()) / classes
        bits[now] = -np.log2(mixed[np.arange(now.sum()), y[now]])
    return bits


def test_it_is_a_plain_loop_over_scikit_learn_with_classes_that_come_late():
    X, y, groups = world(documents=30, length=4, classes=4, signal=1.0)
    late = np.where((y == 3) & (groups < 25), 0, y)
    names = np.array(["a", "b", "c", "d"])
    found = code_length(LinearProbe(l2=0.05), X, names[late], groups=groups, controls=names[y][:, None], seed=5)
    block_of, ends = module._blocks(module.probe_rows(X, late, None, groups), SHARES, 1, 5)
    assert found.ends.tolist() == ends.tolist()
    first = late[block_of == 0]
    assert len(np.unique(first)) < 4  # some class is seen later
    wanted = by_scikit_learn(X, late, block_of, 4, 0.05)
    np.testing.assert_allclose(found.row_bits, wanted, atol=1e-5)
    np.testing.assert_allclose(found.blocks, np.bincount(block_of, wanted), atol=1e-4)
    assert found.control_bits[0] == pytest.approx(by_scikit_learn(X, y, block_of, 4, 0.05).sum(), abs=1e-4)
    assert found.bits == pytest.approx(wanted.sum(), abs=1e-4)


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_columns_together_are_columns_alone(probe):
    X, y, groups = world(signal=1.0)
    controls = np.random.default_rng(6).permuted(np.stack([y] * 3, 1), axis=0)
    how = {"groups": groups, "shares": (0.05, 0.3, 1.0)}
    together = code_length(probe, X, y, controls=controls, **how)
    alone = [code_length(clone(probe), X, column, **how).bits for column in controls.T]
    np.testing.assert_allclose(together.control_bits, alone, rtol=1e-4)


def test_blocks_are_whole_documents_in_an_order_of_their_own():
    draw = np.random.default_rng(7)
    groups = np.repeat(draw.permutation(60), draw.integers(1, 30, 60))
    X, y = draw.standard_normal((len(groups), 2)), np.arange(len(groups)) % 2
    data = module.probe_rows(X, y, None, groups)
    for seed in range(3):
        block_of, ends = module._blocks(data, SHARES, 1, seed)
        assert all(len(set(block_of[groups == g])) == 1 for g in range(60))
        assert np.bincount(block_of).cumsum().tolist() == ends.tolist()
        assert ends[-1] == len(y)
        for share in SHARES:  # the fewest documents that reach each share
            reached = ends[ends >= share * len(y)][0]
            assert reached - share * len(y) < 30
    orders = [module._blocks(data, SHARES, 1, seed)[0].tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    found = code_length(LinearProbe(l2=0.1), X, y, groups=groups)
    data_first = found.row_bits[module._blocks(data, SHARES, 1, 0)[0] == 0]
    assert (data_first == 1).all()  # the uniform code of two classes


def test_a_penalty_is_chosen_in_each_block_where_none_is_given_and_a_seed_is_a_result():
    X, y, groups = world(documents=20, classes=2, signal=2.0)
    how = {"groups": groups, "shares": (0.01, 0.4, 1.0)}
    found = code_length(LinearProbe(), X, y, **how, seed=1)
    assert found.ends[0] >= 15  # three documents of five rows, for three folds
    assert found.bits < 0.8 * found.uniform_bits
    again = code_length(LinearProbe(), torch.from_numpy(X), torch.from_numpy(y), **how, seed=1)
    assert found.row_bits.tolist() == again.row_bits.tolist()
    assert found.bits != code_length(LinearProbe(), X, y, **how, seed=2).bits


def test_shares_may_be_an_array():
    X, y, groups = world()
    given = [np.linspace(0.2, 1, 5), np.linspace(0.2, 1, 5).tolist()]
    found = [code_length(LinearProbe(l2=0.1), X, y, groups=groups, shares=shares) for shares in given]
    assert found[0].bits == found[1].bits
    assert found[0] != found[1]  # results are themselves, not their numbers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"controls": np.zeros(200, int)}, r"controls have shape \(200,\): expected \(200, k\)"),
        ({"controls": np.zeros((3, 1), int)}, r"controls have shape \(3, 1\)"),
        ({"controls": np.full((200, 1), 7)}, "unknown label in controls '7'"),
        ({"shares": (0.5, 0.2, 1.0)}, "expected shares of rows rising to 1"),
        ({"shares": (0.5,)}, "rising to 1"),
        ({"shares": ()}, "rising to 1"),
        ({"shares": "a"}, "rising to 1"),
        ({"shares": [0.5, np.nan, 1.0]}, "rising to 1"),
        ({"probe": LogisticRegression()}, "probe is a LogisticRegression: expected a probe"),
        ({"probe": LinearProbe}, "probe is the class LinearProbe: expected a probe"),
        ({"seed": None}, "seed=None"),
        ({"shares": (1.0,)}, "too few for a first block of 1 and one more"),
        ({"groups": np.zeros(200, int)}, "groups holds 1 documents: too few"),
        ({"groups": np.zeros(7, int)}, r"groups has shape \(7,\)"),
        ({"probe": LinearProbe(l2=0.1, class_weight="balanced")}, "class_weight='balanced' distorts"),
        ({"probe": LinearProbe(l2=0)}, "l2=0 with 5 rows in the first block, in 5 dimensions"),
        ({"y": np.zeros(200, int)}, "one class only"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_argument(options, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    X, y, groups = world(d=5)
    given = {"probe": LinearProbe(l2=0.1), "X": X, "y": y, "groups": groups, **options}
    with pytest.raises(UserError, match=words) as error:
        code_length(given.pop("probe"), given.pop("X"), given.pop("y"), **given)
    assert "\n" not in str(error.value)
