"""Labels that training made do not survive in networks drawn anew; what the token settles does."""

import numpy as np
import pytest
import torch

from controls import weight_nulls
from controls.case import Case, activations_at
from controls.finders import Principal
from controls.initialised import initialised
from controls.model_weights import drawn_anew
from controls.reading import Reading
from controls.registry import controls
from controls.subject import Subject
from toolkit.errors import UserError
from toolkit.language import load_model

HOOK, LATER = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"
SEQUENCES, POSITIONS, DEAR = 60, 20, 3
NETWORKS = {
    "weights.init": ("init", {}),
    "weights.gaussian": ("gaussian", {}),
    "weights.gaussian-kept": ("gaussian", {"embeddings": False}),
    "weights.shuffled": ("shuffled", {}),
    "weights.spectrum": ("spectrum", {}),
    "weights.spectrum-left": ("spectrum", {"side": "left"}),
    "weights.spectrum-right": ("spectrum", {"side": "right"}),
    "weights.spectrum-products": ("spectrum", {"side": "products"}),
}
FORGETTING = [name for name in NETWORKS if name not in ("weights.gaussian-kept", "weights.spectrum-left")]
"""Those that keep nothing of which tokens are alike."""


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-gpt2")


@pytest.fixture(scope="module")
def reading(model):
    """Tokens drawn one by one by Zipf's law, so that none tells of another."""
    shares = 1 / np.arange(1, model.vocabulary + 1)
    ids = np.random.default_rng(0).choice(model.vocabulary, (SEQUENCES, POSITIONS), p=shares / shares.sum())
    rows = torch.cartesian_prod(torch.arange(SEQUENCES), torch.arange(POSITIONS))
    groups = np.repeat(np.arange(SEQUENCES), POSITIONS)
    return Reading(torch.from_numpy(ids), rows, groups, np.array([], int), "tokens", None)


def above_median(model, reading, component):
    """Of a principal coordinate two blocks after the hook."""
    X = activations_at(model, LATER, reading.tokens, reading.rows)
    return Principal(component + 1).fit(X, seed=0).labels(reading, X)[f"pca:{component + 1}"]


def case_of(model, reading, labels, *, hook=HOOK, finders=None, **options):
    """Features named by nobody, or each by the one finder given."""
    X = activations_at(model, hook, reading.tokens, reading.rows)
    families = dict.fromkeys(labels, next(iter(finders or {}), ""))
    subject = Subject(X, labels, reading.groups, reading.ids, np.arange(10), None, dict.fromkeys(labels), {},
                      families=families)  # fmt: skip
    return Case(model, hook, reading, subject, finders or {}, **{"dear": DEAR, **options})


@pytest.fixture(scope="module")
def labels(model, reading):
    kinds = {f"trained {number}": above_median(model, reading, number) for number in (0, 5, 20)}
    return kinds | {f"token {token}": (reading.ids == token).astype(int) for token in (0, 1)}


@pytest.fixture(scope="module")
def case(model, reading, labels):
    return case_of(model, reading, labels)


@pytest.fixture(scope="module")
def outcomes(case):
    """Of all nine, each run once."""
    return {name: {found.feature: found for found in run(case)} for name, run in RUNS.items()}


RUNS = {name: control.run for name, control in controls().items() if name.startswith("weights.")}


def test_all_nine_are_registered_and_dear():
    assert set(RUNS) == {*NETWORKS, "weights.cascade"}
    assert all(controls()[name].dear for name in RUNS)


# What survives


@pytest.mark.parametrize("name", FORGETTING)
def test_a_label_that_later_blocks_compute_is_read_from_no_null_network_as_well(outcomes, name):
    for feature in ("trained 0", "trained 5", "trained 20"):
        found = outcomes[name][feature]
        assert found.observed > 0.5
        assert found.observed > found.null.max() + 0.1
        assert found.p == 1 / (1 + DEAR)


@pytest.mark.parametrize("name", ["weights.gaussian-kept", "weights.spectrum-left"])
def test_where_it_stays_known_which_tokens_are_alike_a_trained_label_keeps_a_part(outcomes, name):
    for feature in ("trained 0", "trained 5", "trained 20"):
        kept, drawn = outcomes[name][feature], outcomes["weights.gaussian"][feature]
        assert kept.observed > kept.null.max()
        assert kept.null.min() > drawn.null.max() + 0.1


@pytest.mark.parametrize("name", FORGETTING)
def test_which_token_it_is_can_be_read_from_any_network(outcomes, name):
    for feature in ("token 0", "token 1"):
        found = outcomes[name][feature]
        assert found.null.mean() > 0.95 * found.observed


def test_among_networks_of_its_own_kind_an_untrained_one_has_no_rank_of_its_own(model, reading):
    """The null itself: labels that types were given at random, read at one network drawn as the others are."""
    draws, types = np.random.default_rng(1), model.vocabulary
    labels = {f"type task {number}": (draws.random(types) < 0.3).astype(int)[reading.ids] for number in range(20)}
    p = [
        found.p for seed in (101, 102) for found in RUNS["weights.init"](
            case_of(initialised(model, seed=seed), reading, labels, dear=5)
        )
    ]  # fmt: skip
    assert 0.3 < np.mean(p) < 0.8
    assert np.mean(np.array(p) < 0.2) < 0.4


# What is compared


@pytest.mark.parametrize("name", NETWORKS)
def test_a_null_is_the_read_out_at_the_same_rows_of_a_network_drawn_whole(case, outcomes, name):
    kind, options = NETWORKS[name]
    Y = torch.from_numpy(case.subject.table[case.some]).float()
    seed = int(np.random.default_rng([case.seed, 131, 1]).integers(2**31))
    wanted = case.fold(case.through(drawn_anew(case.model, kind, seed=seed, **options))).r(Y)
    found = [found.null[1] for found in outcomes[name].values()]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    own = case.fold(case.through(case.model)).r(Y)
    np.testing.assert_allclose([found.observed for found in outcomes[name].values()], own, rtol=0, atol=1e-5)


def test_the_seed_decides_the_networks_alone(model, reading, labels):
    one = {"trained 0": labels["trained 0"]}
    first, again, other = (
        RUNS["weights.init"](case_of(model, reading, one, seed=seed, dear=2))[0] for seed in (4, 4, 5)
    )
    assert np.array_equal(first.null, again.null)
    assert not np.isin(first.null, other.null).any()


# Blocks from the top


def test_a_cascade_is_a_curve_from_the_block_at_the_hook_down(case, outcomes):
    Y = torch.from_numpy(case.subject.table[case.some]).float()
    seed = int(np.random.default_rng([case.seed, 131, 0]).integers(2**31))
    for number, blocks in enumerate((3, 4)):  # two stand after the hook
        network = drawn_anew(case.model, "cascade", seed=seed, blocks=blocks)
        found = [found.null[number] for found in outcomes["weights.cascade"].values()]
        np.testing.assert_allclose(found, case.fold(case.through(network)).r(Y), rtol=0, atol=1e-6)
    found = outcomes["weights.cascade"]["trained 20"]
    assert len(found.null) == 2
    assert found.observed > found.null[0] > found.null[1]
    assert found.note == "a draw is a depth: top blocks up to the hook drawn, 1, 2 of 2; the rank is no test"
    assert found.survived(1.0) is None


@pytest.mark.parametrize(
    ("hook", "dear", "depths"),
    [
        ("blocks.3.hook_resid_post", 9, [1, 2, 3, 4]),
        ("blocks.3.hook_resid_post", 4, [1, 2, 3, 4]),
        ("blocks.3.hook_resid_post", 2, [1, 4]),
        ("blocks.3.hook_resid_post", 1, [4]),
        ("blocks.3.hook_resid_pre", 9, [1, 2, 3]),
        ("blocks.0.hook_mlp_out", 9, [1]),
        ("ln_final.hook_normalized", 9, [1, 2, 3, 4]),
    ],
)
def test_depths_go_to_the_first_block_and_are_no_more_than_asked_for(model, reading, labels, hook, dear, depths):
    assert weight_nulls.cascade_depths(case_of(model, reading, labels, hook=hook, dear=dear)) == depths


def test_blocks_before_a_hook_are_those_its_activations_depend_on(model, reading):
    """All but them drawn anew changes nothing, and one more does."""
    for hook in ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", HOOK):
        after = 4 - weight_nulls.blocks_before(model, hook)
        own = activations_at(model, hook, reading.tokens[:4], reading.rows[:80])
        nulls = [drawn_anew(model, "cascade", seed=0, blocks=blocks) for blocks in (after, after + 1)]
        same, other = (activations_at(null, hook, reading.tokens[:4], reading.rows[:80]) for null in nulls)
        assert torch.equal(own, same)
        assert not torch.equal(own, other)


# What is said


def test_few_networks_and_a_finders_own_features_are_noted(model, reading, labels, monkeypatch):
    own = {"pca:1": labels["trained 0"]}
    few = case_of(model, reading, own, finders={"pca": Principal(1)}, dear=2)
    wanted = "2 networks: p is at least 0.33; read off these very activations: see finders.* too"
    assert RUNS["weights.gaussian"](few)[0].note == wanted
    monkeypatch.setattr(weight_nulls, "LEVEL", 0.4)
    assert RUNS["weights.gaussian"](case_of(model, reading, own, dear=2))[0].note == ""


def test_what_cannot_be_drawn_is_told_in_one_line(model, reading, labels):
    with pytest.raises(UserError, match="no block comes before hook_embed, so there is none to draw"):
        RUNS["weights.cascade"](case_of(model, reading, labels, hook="hook_embed"))
