"""N9: blocks are told apart, what is said follows the numbers, hooks that will not do are named."""

import numpy as np
import pytest
import torch

from experiments.network import interaction_words as module
from experiments.network.block_network import block_network
from experiments.network.ground import ground
from experiments.network.interaction_basis import Settings, cells
from experiments.network.interaction_basis_report import NEEDED, PCA, SEVERAL, _addition_checks, _verdict, ratios
from experiments.network.interaction_measures import BASES, LOCAL, QUANTITIES, Pair, quantities
from experiments.network.interaction_toys import _across, _blocks
from experiments.network.interaction_words import GROUPS, _grouped, _hooks, _pair, measure_model
from experiments.network.subject import Subject
from toolkit.errors import UserError
from toolkit.interaction_basis import InteractionBasis, neuron_basis, principal_basis
from toolkit.interactions import keep_edges


def basis(reads):
    d = reads.shape[1]
    kept = torch.ones(len(reads)).double()
    return InteractionBasis(torch.zeros(d).double(), reads, torch.linalg.pinv(reads), kept, torch.eye(d).double())


def test_true_directions_have_one_block_and_nothing_across_and_even_mixtures_two_thirds():
    found = block_network(rows=200, independent=True, seed=0)
    true = [basis(R.mT[:12].contiguous()) for R in found.rotations]
    torch.testing.assert_close(_blocks(found, true[1], 1).max(1).values, torch.ones(12).double())
    inside = (found.blocks[:, None] == found.blocks).double()
    torch.testing.assert_close(_across(found, true, [inside] * 3), torch.zeros(3).double())
    torch.testing.assert_close(
        _across(found, true, [torch.ones(12, 12).double()] * 3), torch.full((3,), 2 / 3).double()
    )
    mixed = _blocks(found, basis(torch.linalg.qr(torch.randn(18, 18).double()).Q), 1)
    assert mixed.max(1).values.mean() < 0.8


def test_what_must_stay_of_a_known_layer():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([8.0, 4.0, 2.0, 1.0])
    x = x - x.mean(0)
    pair = Pair(lambda rows: rows, x, lambda reached: float((reached - x).square().max()), 1e-9)

    def of(one, ranked):
        return dict(zip(QUANTITIES, quantities(pair, one, one, ranked, ranked=ranked).tolist(), strict=True))

    assert of(neuron_basis(x), torch.eye(4)) == dict.fromkeys(QUANTITIES, 4)
    lacking = of(basis(torch.eye(4).double()[:2]), torch.eye(2))
    assert (lacking["needed"], lacking["directions"]) == (16, 4)


def drawn(logs, networks):
    """Quantities (networks, bases, pairs, quantities) with these edges needed, and a little noise."""
    values = torch.ones(networks, len(BASES), 1, len(QUANTITIES)).double()
    noise = 0.01 * torch.randn(networks, len(BASES), generator=torch.Generator().manual_seed(0)).double()
    values[:, :, 0, NEEDED] = (torch.tensor(logs).double() + noise).exp()
    return values


@pytest.mark.parametrize(
    ("pca", "said"), [(6.0, "need more edges"), (4.0, "need fewer edges"), (5.0, "are not told apart")]
)
def test_what_is_said_of_principal_components_follows_the_numbers(pca, said):
    logs = torch.tensor([-0.01, 0.01, 0.02, -0.02]) + pca - 5
    assert said in _verdict(logs)


def test_principal_components_are_judged_on_several_additions_only():
    for networks in (SEVERAL - 1, SEVERAL):
        found = {"quantities": drawn([5.0, 6, 6, 6, 4], networks), "held_out": torch.ones(networks)}
        assert ratios(found["quantities"], NEEDED)[PCA].mean() == pytest.approx(1, abs=0.02)
        made = _addition_checks(found)
        assert sum(PCA in check.claim for check in made) == (networks == SEVERAL)
        assert [check.passed for check in made] == [True] * (len(made) - 1) + [False]


def test_a_model_has_cells_where_one_is_named():
    assert "model" not in {cell["part"] for cell in cells(Settings())}
    hooks = "blocks.0.hook_resid_post, blocks.1.hook_resid_post"
    named = [cell["at"] for cell in cells(Settings(model="tiny-gpt2", hook=hooks)) if cell["part"] == "model"]
    assert named == hooks.split(", ")
    assert BASES[0] == LOCAL


def test_hooks_are_followed_by_those_of_the_next_blocks():
    subject = Subject(model="tiny-gpt2")
    assert _hooks(subject, "1") == [f"blocks.{n}.hook_resid_post" for n in (1, 2, 3)]
    assert _hooks(subject, "blocks.2.hook_resid_post") == [f"blocks.{n}.hook_resid_post" for n in (2, 3)]
    for hook in ("blocks.3.hook_resid_post", "blocks.1.hook_mlp_out"):
        with pytest.raises(UserError, match=rf"{hook} cannot be followed to a next block: .* n from 0 to 2"):
            _hooks(subject, hook)


@pytest.fixture(scope="module")
def words():
    return Settings(model="tiny-gpt2", hook="blocks.1.hook_resid_post", rows=4_000, places=48)


def test_all_edges_of_a_model_cost_nothing_and_none_much(words):
    subject = Subject(model="tiny-gpt2", rows=4_000, places=48)
    first, following = (ground(subject, f"blocks.{n}.hook_resid_post") for n in (1, 2))
    part = np.arange(12)
    pair = _pair(first, following, part, 0.1)
    torch.testing.assert_close(pair.layer(pair.x), following.x[part], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pair.x, first.x[part])
    assert pair.harm(following.x[part]) < 1e-6
    assert pair.harm(following.mean.expand(12, -1)) > 1
    for make in (neuron_basis, principal_basis):
        source, target = make(first.learn), make(following.learn)
        for edges, low, high in ((1, 0, 1e-4), (0, 1, np.inf)):
            mask = torch.full((len(target.reads), len(source.reads)), edges, dtype=torch.bool)
            assert low <= pair.harm(keep_edges(pair.layer, pair.x, source, target, mask)) <= high


def test_a_models_edges_are_ranked_at_the_places_of_the_fit(words, monkeypatch):
    seen = []

    def note(pair, basis, following, squared, *, ranked):
        seen.append((basis, squared, ranked))
        return torch.ones(len(QUANTITIES)).double()

    monkeypatch.setattr(module, "quantities", note)
    found = measure_model(words, "blocks.1.hook_resid_post", 0)
    assert found["quantities"].shape == (len(BASES), GROUPS, len(QUANTITIES))
    assert len({id(ranked) for _, _, ranked in seen}) == len(BASES)  # one ranking a basis, whichever group is measured
    assert len({id(squared) for _, squared, _ in seen}) == len(BASES) * GROUPS
    local, principal = seen[0][0], seen[GROUPS][0]
    assert BASES[:2] == (LOCAL, PCA)
    assert (local.reads[0] / local.reads[0].norm() - principal.reads[0] / principal.reads[0].norm()).norm() > 0.1


def test_documents_are_measured_whole_and_in_four_groups():
    documents = np.repeat(np.arange(9), 3)
    groups = _grouped(documents, documents >= 3)
    assert sorted(np.concatenate(groups)) == list(range(9, 27))
    assert [len(set(documents[g])) for g in groups] == [2, 2, 1, 1]
    with pytest.raises(UserError, match="3 documents to measure on, 4 are needed"):
        _grouped(documents, documents >= 6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"networks": 0}, "networks must be at least 1"), ({"places": 8}, "at least 24"), ({"nats": 0.0}, "positive")],
)
def test_settings_that_will_not_do_are_told(changed, message):
    with pytest.raises(UserError, match=message):
        Settings(**changed)
