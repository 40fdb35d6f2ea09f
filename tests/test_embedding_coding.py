"""What E1 and E3 measure with: splits, errors against other implementations, weighted and at equal bits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import orthogonal_mp_gram

from experiments.embedding import basis_pursuit, basis_report, bits_report, coding, equal_bits, storing
from toolkit import metrics
from toolkit.bits import bits_a_row
from toolkit.sae import SAEConfig

SMOKE = basis_pursuit.SMOKE


@pytest.fixture(scope="module")
def rows():
    return coding.split(SMOKE, "observed", 100, 0)


def test_rows_are_centred_and_scaled_by_the_training_tokens_alone(rows):
    assert rows.train.mean(0) == pytest.approx(0, abs=1e-6)
    assert np.square(rows.train).sum(1).mean() == pytest.approx(1, rel=1e-5)
    assert len(rows.held_out) == len(rows.tokens) == len(rows.tokens.unique()) == 100
    assert set(rows.tokens.tolist()) <= set(rows.vocabulary.held_out.tolist())
    raw = rows.vocabulary.rows
    mean = raw[rows.vocabulary.train].mean(0)
    scale = (raw[rows.vocabulary.train] - mean).square().sum(1).mean().sqrt()
    assert torch.allclose(torch.from_numpy(rows.held_out), (raw[rows.tokens] - mean) / scale, atol=1e-5)


def test_a_null_has_the_embeddings_split_and_not_its_rows(rows):
    null = coding.split(SMOKE, "columns_shuffled", 100, 0)
    assert torch.equal(null.tokens, rows.tokens)
    assert np.abs(null.held_out - rows.held_out).max() > 0.1
    assert np.square(null.train).mean(0) == pytest.approx(np.square(rows.train).mean(0), rel=0.2)


def test_pursuit_leaves_what_scikit_learns_does(rows):
    atoms = coding.row_subset(rows.train, n=80, seed=0)
    assert np.linalg.norm(atoms, axis=1) == pytest.approx(1, abs=1e-5)
    x = rows.held_out[:20].astype(float)
    found = coding.pursued(rows.held_out[:20], atoms, (1, 5))
    for at, k in enumerate((1, 5)):
        z = orthogonal_mp_gram(atoms.astype(float) @ atoms.T, atoms @ x.T, n_nonzero_coefs=k)
        assert found[:, at].numpy() == pytest.approx(np.square(x - z.T @ atoms).sum(1), abs=1e-4)


def test_components_leave_what_scikit_learns_do_and_all_of_them_nothing(rows):
    d = rows.train.shape[1]
    found = coding.unlearned(rows, n=80, ks=(3, d), seed=0)["errors.components"]
    fitted = PCA(3, svd_solver="full").fit(rows.train)
    rebuilt = fitted.inverse_transform(fitted.transform(rows.held_out))
    assert found[:, 0].numpy() == pytest.approx(np.square(rows.held_out - rebuilt).sum(1), abs=1e-4)
    assert found[:, 1].numpy() == pytest.approx(0, abs=1e-5)


def test_an_sae_is_given_back_in_the_rows_own_units(rows):
    sae = coding.trained_sae(rows.train, SAEConfig(width=128, k=4, steps=150, batch=256), seed=0)
    x = torch.from_numpy(rows.held_out)
    assert metrics.fvu(x, sae(x[None])[0], about="zero") < 0.7


def test_the_lassos_path_is_certified(rows):
    atoms = coding.row_subset(rows.train, n=80, seed=0)
    found = coding.certified(rows.held_out[:10], atoms, alphas=(0.3, 0.05), ks=(1, 4))
    assert found["lasso.gaps"].shape == (10, 2)
    assert found["omp.fuchs"].shape == (10, 2)
    assert found["lasso.gaps"].max() <= 1e-4
    assert (found["lasso.errors"][:, 1] < found["lasso.errors"][:, 0]).all()
    assert (found["omp.fuchs"][:, 0] < 1 + 1e-6).all()


def test_weighted_and_plain_fvu_are_those_of_the_metrics():
    x, y = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    weights, tokens = torch.rand(50, generator=torch.Generator().manual_seed(1)), torch.arange(0, 60, 2)[:25]
    x, y = x[:25], y[:25]
    one = {"tokens": tokens, "squares": x.square().sum(1), "errors.observed": (x - y).square().sum(1)[:, None]}
    found = basis_report.held_out_fvus([one], weights)
    assert found["observed", False].item() == pytest.approx(metrics.fvu(x, y, about="zero"), rel=1e-5)
    expected = metrics.fvu(x, y, about="zero", weights=weights[tokens])
    assert found["observed", True].item() == pytest.approx(expected, rel=1e-5)


def test_the_frequencies_come_from_one_cell():
    made = basis_pursuit.cells(basis_pursuit.Settings())
    assert sum(cell["part"] == "weighted" for cell in made) == 1


def test_the_best_code_within_a_budget_is_found_between_ks_and_over_widths():
    def curve(bits, fvu):
        return {"bits": torch.tensor(bits), "fvu": torch.tensor(fvu)}

    narrow, wide = curve([10.0, 20.0, 40.0], [1.0, 0.6, 0.5]), curve([20.0, 30.0], [0.8, 0.2])
    curves = {("sae", 1.0, 8): [narrow, narrow], ("sae", 2.0, 8): [wide, wide], ("learned", 1.0, 8): [wide, wide]}
    found = bits_report.best_at_budgets(SimpleNamespace(budgets=(15.0, 25.0, 35.0)), curves, "sae")
    assert found.tolist() == [pytest.approx([0.8, 0.5, 0.525])] * 2


def test_bits_and_rounding_are_measured(rows):
    settings = equal_bits.SMOKE
    cell = {"part": "subset", "overcomplete": 2.0, "k": 0, "replicate": 0}
    found = equal_bits.measure(settings, cell, 0)
    d, tokens = rows.train.shape[1], len(rows.vocabulary.rows)
    assert found["active"].tolist() == pytest.approx(settings.ks)
    expected = [bits_a_row(k, n=2 * d, d=d, rows=tokens, bits=8) for k in settings.ks]
    assert found["bits"].tolist() == pytest.approx(expected)
    assert 0 < (found["fvu"] - found["exact"]).abs().max() < 0.002
    coarse = equal_bits.measure(equal_bits.replace(settings, bits=2), cell, 0)
    assert (coarse["fvu"] > found["fvu"] + 0.02).all()


def test_a_dictionary_as_wide_as_its_tokens_stores_them_and_no_others(rows):
    found = storing.stored(rows, 32, steps=200, seed=0)
    assert found["stored.learned"] < 1e-6
    assert found["others.learned"] > 0.5
    assert found["stored.sae"] < found["others.sae"]
