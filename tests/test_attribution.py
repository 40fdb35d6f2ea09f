"""Attribution: theorems on small networks, a fine Riemann sum as oracle, kinks, SAEs of every kind, mistakes."""

import numpy as np
import pytest
import torch

from toolkit.attribution import (
    FLOOR,
    TOLERANCE,
    Parts,
    ablation,
    gradient_times_activation,
    insertion,
    integrated_gradients,
    latent_parts,
    output_of,
    probe_parts,
)
from toolkit.downstream import LanguageDownstream
from toolkit.errors import UserError
from toolkit.language import load_model
from toolkit.path_gradient import NODES, gradients, mean_gradient, values
from toolkit.sae import SAE, SAEConfig, fit_sae

PLACES, FEATURES, D = 5, 6, 9


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts_of(seed=0, features=FEATURES):
    values = drawn(PLACES, features, seed=seed)
    start, rest = drawn(PLACES, D, seed=seed + 1), 0.3 * drawn(PLACES, D, seed=seed + 2)
    base = drawn(features, seed=seed + 3)
    return Parts(start, values, base, drawn(features, D, seed=seed + 4), rest)


IN, OUT = drawn(PLACES, D, 12, seed=20) / 2, drawn(12, seed=21)


def smooth(rows, at):
    """A network of tanh, another at each place."""
    return torch.tanh(torch.einsum("rd,rdh->rh", rows, IN[at])) @ OUT


def kinked(rows, at):
    return torch.relu(torch.einsum("rd,rdh->rh", rows, IN[at]) - 0.3) @ OUT


def linear(rows, at):
    return torch.einsum("rd,rdh->rh", rows, IN[at]) @ OUT + 3.0


HESSIAN = drawn(D, D, seed=22)


def quadratic(rows, at):
    return (rows @ HESSIAN * rows).sum(1) + linear(rows, at)


ALL = torch.ones(PLACES, FEATURES, dtype=torch.bool)
WAYS = {
    "integrated": integrated_gradients,
    "gradient": gradient_times_activation,
    "ablation": lambda metric, parts: ablation(metric, parts, ALL),
    "insertion": lambda metric, parts: insertion(metric, parts, ALL),
}


@pytest.mark.parametrize("metric", [smooth, kinked, linear, quadratic])
def test_attributions_and_that_of_the_rest_sum_to_the_change(metric):
    parts, at = parts_of(), torch.arange(PLACES)
    found = integrated_gradients(metric, parts)
    change = metric(parts.x, at) - metric(parts.start, at)
    torch.testing.assert_close(found.change, change)
    assert (found.missing <= TOLERANCE * change.abs() + FLOOR).all()
    assert (found.missing == (found.features.sum(1) + found.rest - change).abs()).all()
    if metric is not linear:  # one gradient, and one feature at a time, do not sum so
        for way in ("gradient", "ablation", "insertion"):
            assert (WAYS[way](metric, parts).missing > 0.01).any()


def test_without_the_rest_the_sum_falls_short():
    found = integrated_gradients(smooth, parts_of())
    assert ((found.features.sum(1) - found.change).abs() > 0.05).any()


def test_on_a_linear_network_all_agree_exactly():
    parts = parts_of()
    slopes = torch.einsum("pdh,h->pd", IN, OUT)
    exact = parts.moves * (slopes @ parts.directions.mT)
    for way in WAYS.values():
        found = way(linear, parts)
        torch.testing.assert_close(found.features, exact, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.rest, (parts.rest * slopes).sum(1), rtol=1e-10, atol=1e-10)
        assert found.missing.max() < 1e-10
    assert (
        integrated_gradients(smooth, parts).features - gradient_times_activation(smooth, parts).features
    ).abs().max() > 0.1


def test_attributions_are_linear_in_the_metric():
    parts = parts_of()

    def both(rows, at):
        return 2 * smooth(rows, at) - 3 * quadratic(rows, at)

    exact = {"tolerance": 0.0, "floor": 1e-9}
    one, other, joint = (integrated_gradients(m, parts, **exact).features for m in (smooth, quadratic, both))
    torch.testing.assert_close(joint, 2 * one - 3 * other, rtol=1e-7, atol=1e-7)


def test_a_feature_that_the_metric_does_not_depend_on_gets_nothing():
    parts = parts_of()
    directions = parts.directions.clone()
    directions[:, 0] = 0
    directions[2] = torch.eye(D, dtype=torch.float64)[0]  # the only one that writes dimension 0
    parts = Parts(parts.start, parts.values, parts.base, directions, parts.rest)

    def deaf(rows, at):
        return smooth(torch.cat([torch.zeros_like(rows[:, :1]), rows[:, 1:]], 1), at)

    for way in WAYS.values():
        found = way(deaf, parts).features
        assert found[:, 2].abs().max() < 1e-12
        assert found[:, [0, 1, 3]].abs().min() > 1e-6
        assert way(smooth, parts).features[:, 2].abs().max() > 1e-3


def test_features_that_play_the_same_part_get_the_same():
    parts = parts_of()
    values, base, directions = parts.values.clone(), parts.base.clone(), parts.directions.clone()
    values[:, 1], base[1], directions[1] = values[:, 0], base[0], directions[0]
    twins = Parts(parts.start, values, base, directions, parts.rest)
    for way in WAYS.values():
        found = way(smooth, twins).features
        torch.testing.assert_close(found[:, 0], found[:, 1])
        assert (found[:, 0] - found[:, 2]).abs().min() > 1e-4


def test_of_a_quadratic_metric_they_are_the_mean_of_ablation_and_insertion():
    parts = parts_of()
    found = {name: way(quadratic, parts) for name, way in WAYS.items()}
    middle = (found["ablation"].features + found["insertion"].features) / 2
    torch.testing.assert_close(found["integrated"].features, middle, rtol=1e-9, atol=1e-9)
    rest = (found["ablation"].rest + found["insertion"].rest) / 2
    torch.testing.assert_close(found["integrated"].rest, rest, rtol=1e-9, atol=1e-9)
    # what one gradient misses of ablation is the feature's own curvature, halved: no other feature has a part in it
    own = torch.einsum("pf,fd,de,fe->pf", parts.moves.square(), parts.directions, HESSIAN + HESSIAN.T, parts.directions)
    torch.testing.assert_close(found["gradient"].features - found["ablation"].features, own / 2, rtol=1e-9, atol=1e-9)


def test_a_single_feature_without_a_rest_gets_what_its_ablation_says():
    parts = parts_of(features=1)
    parts = Parts(parts.start, parts.values, parts.base, parts.directions, torch.zeros(PLACES, D).double())
    one = torch.ones(PLACES, 1, dtype=torch.bool)
    for metric in (smooth, kinked):
        found = integrated_gradients(metric, parts, floor=1e-6, tolerance=1e-6).features
        for way in (ablation, insertion):
            torch.testing.assert_close(found, way(metric, parts, one).features, rtol=1e-5, atol=1e-5)


def riemann(metric, parts, steps=20_000):
    """The plain sum at midpoints, a place and a step at a time in its meaning."""
    found = torch.zeros(PLACES, D, dtype=torch.float64)
    for place in range(PLACES):
        along = (torch.arange(steps) + 0.5)[:, None] / steps
        rows = (parts.start[place] + along * (parts.x - parts.start)[place]).requires_grad_()
        metric(rows, torch.full((steps,), place)).sum().backward()
        found[place] = rows.grad.mean(0)
    return parts.moves * (found @ parts.directions.mT)


@pytest.mark.parametrize(("metric", "steps"), [(smooth, 200), (kinked, 2500)])
def test_each_attribution_is_that_of_a_fine_riemann_sum(metric, steps):
    parts = parts_of()
    found = integrated_gradients(metric, parts)
    expected = riemann(metric, parts)
    allowed = TOLERANCE * found.change.abs() + FLOOR
    assert ((found.features - expected).abs() <= allowed[:, None]).all()
    assert (riemann(metric, parts, 10) - expected).abs().max() > 1e-3  # ten steps would not do
    assert found.steps.min() >= 3 * NODES
    assert found.steps.max() <= steps


def test_places_are_refined_apart_and_no_further_than_they_ask_for():
    start = torch.zeros(2, 1, dtype=torch.float64)
    end = torch.ones(2, 1, dtype=torch.float64)

    def one_kink(rows, at):
        return torch.where(at == 0, rows[:, 0] ** 3, torch.relu(rows[:, 0] - 0.377))

    found = mean_gradient(one_kink, start, end, lambda gradient, at: gradient, tolerance=1e-5, floor=0.0)
    assert found.steps[0] == 3 * NODES
    assert 3 * NODES < found.steps[1] < 4 * NODES * 15  # both halves of a piece with the kink, up to 14 times
    torch.testing.assert_close(found.gradient[:, 0], torch.tensor([1.0, 0.623]).double(), rtol=2e-5, atol=0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("toolkit.path_gradient.ROUNDS", 3)
        coarse = mean_gradient(one_kink, start, end, lambda gradient, at: gradient, tolerance=1e-5, floor=0.0)
    assert (coarse.gradient[1] - 0.623).abs() > 1e-3


def test_errors_that_cancel_in_the_sum_are_seen():
    eye, nothing = torch.eye(2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)

    def opposed(rows, at):
        return torch.atan(60 * (rows[:, 0] - 0.3)) - torch.atan(60 * (rows[:, 1] - 0.3))

    found = integrated_gradients(opposed, Parts(nothing, nothing + 1, nothing[0], eye, nothing))
    assert found.change.abs().max() < 1e-12  # whatever the quadrature, the two sum to nothing
    rise = np.arctan(60 * 0.7) - np.arctan(-60 * 0.3)
    np.testing.assert_allclose(found.features[0].numpy(), [rise, -rise], atol=FLOOR)


def test_blocks_change_nothing(monkeypatch):
    parts, at = parts_of(), torch.arange(PLACES)
    whole = [way(smooth, parts).features for way in WAYS.values()]
    exact = torch.autograd.functional.jacobian(lambda rows: smooth(rows, at), parts.x).diagonal(dim1=0, dim2=1).mT
    torch.testing.assert_close(gradients(smooth, parts.x, at), exact)
    for module in ("attribution", "path_gradient"):
        monkeypatch.setattr(f"toolkit.{module}.BLOCK", 3)
    torch.testing.assert_close(values(smooth, parts.x, at), smooth(parts.x, at))
    for way, before in zip(WAYS.values(), whole, strict=True):
        torch.testing.assert_close(way(smooth, parts).features, before)


def test_features_at_their_baseline_are_nothing_and_those_not_asked_for_are_unknown():
    parts = parts_of()
    values, asked = parts.values.clone(), ALL.clone()
    values[1, 2], asked[:, 4] = parts.base[2], False
    parts = Parts(parts.start, values, parts.base, parts.directions, parts.rest)
    found = ablation(smooth, parts, asked)
    assert found.features[1, 2] == 0
    assert found.features[:, 4].isnan().all()
    assert found.features[:, [0, 1, 3, 5]].isfinite().all()
    by_hand = parts.x[3] - parts.moves[3, 1] * parts.directions[1]
    expected = smooth(parts.x[3:4], torch.tensor([3])) - smooth(by_hand[None], torch.tensor([3]))
    torch.testing.assert_close(found.features[3, 1], expected[0])


@pytest.fixture(scope="module")
def rows():
    found = torch.randn(600, 12, generator=torch.Generator().manual_seed(3))
    return found.sign() * found.abs() ** 1.5 + 2.0


@pytest.fixture(scope="module")
def saes(rows, tmp_path_factory):
    """TopK and L1 trained here, the latter as sae-lens reads it from a folder."""
    from toolkit.sae import load_sae

    topk = fit_sae(rows, SAEConfig(architecture="topk", width=24, k=4, steps=150, batch=128))
    folder = tmp_path_factory.mktemp("sae") / "l1"
    fit_sae(rows, SAEConfig(architecture="l1", width=24, steps=150, batch=128)).save(folder)
    return {"topk": topk, "loaded": load_sae(str(folder))}


@pytest.mark.parametrize("kind", ["topk", "loaded"])
@pytest.mark.parametrize("mean", [False, True])
def test_latents_bias_and_error_make_up_the_activation(saes, rows, kind, mean):
    sae, x = saes[kind], rows[:7]
    parts = latent_parts(sae, x, rows=rows if mean else None)
    torch.testing.assert_close(parts.x, x, atol=1e-5, rtol=0)
    latents, rebuilt = sae.encode(rows[None])[0].detach(), sae(rows[None])[0].detach()
    torch.testing.assert_close(parts.values, latents[:7])
    if mean:
        torch.testing.assert_close(parts.start[0], rows.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(parts.base, latents.mean(0), atol=1e-5, rtol=0)
        error = (rows - rebuilt) - (rows - rebuilt).mean(0)
    else:
        nothing = sae.decode(torch.zeros(1, 1, 24))[0, 0].detach()
        torch.testing.assert_close(parts.start[0], nothing, atol=1e-5, rtol=0)
        assert (parts.base == 0).all()
        error = rows - rebuilt
    torch.testing.assert_close(parts.rest, error[:7], atol=1e-4, rtol=0)
    assert error[:7].abs().max() > 0.1


def test_an_sae_that_decodes_by_unit_rows_is_understood_and_one_that_scales_rows_is_refused(saes, rows):
    topk, x = saes["topk"], rows[:7]

    class Other(SAE):
        """Longer rows than it decodes by."""

        def __call__(self, x):
            return topk(x) * (x.norm(dim=2, keepdim=True) if self.target == "scaled" else 1)

    long = {**topk.parameters, "W_dec": 3 * topk.W_dec}
    by_unit = latent_parts(Other(topk.config, "unit", long, topk.history), x)
    torch.testing.assert_close(by_unit.directions, topk.W_dec[0])
    torch.testing.assert_close(by_unit.x, x, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="this SAE scales each row by itself"):
        latent_parts(Other(topk.config, "scaled", long, topk.history), x)


def test_probes_take_their_span_and_leave_what_is_at_a_right_angle(rows):
    directions, start = drawn(3, 12).float(), rows.mean(0)
    parts = probe_parts(directions, rows[:7], start)
    torch.testing.assert_close(parts.x, rows[:7], atol=1e-4, rtol=0)
    torch.testing.assert_close(parts.rest @ directions.mT, torch.zeros(7, 3), atol=1e-4, rtol=0)
    axes = torch.linalg.qr(directions.mT)[0].mT
    torch.testing.assert_close(probe_parts(axes, rows[:7], start).values, rows[:7] @ axes.mT, atol=1e-4, rtol=0)
    for wrong, message in (
        (directions[[0, 1, 0]], "3 directions span 2"),
        (drawn(13, 12).float(), "13 directions span 12"),
    ):
        with pytest.raises(UserError, match=message):
            probe_parts(wrong, rows[:7], start)


def test_in_a_language_model_latents_and_probes_sum_to_the_change_of_a_log_probability():
    model, gen = load_model(), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.vocabulary, (3, 9), generator=gen)
    places = torch.tensor([[0, 3], [1, 8], [2, 1], [2, 5]])
    rest = LanguageDownstream(model, "blocks.1.hook_resid_post", tokens, places)
    at = torch.arange(4)
    clean = rest(rest.activations, at).detach()
    metric = output_of(rest, clean.argmax(1))
    torch.testing.assert_close(metric(rest.activations, at).detach(), clean.max(1).values)
    x = rest.activations
    others = x.mean(0) + x.std() * torch.randn(512, x.shape[1], generator=gen)
    sae = fit_sae(others, SAEConfig(architecture="topk", width=64, k=8, steps=50, batch=128))
    for parts in (latent_parts(sae, x, rows=others), probe_parts(x[:2], x, others.mean(0)), latent_parts(sae, x)):
        found = integrated_gradients(metric, parts)
        assert (found.missing <= TOLERANCE * found.change.abs() + FLOOR).all()
        torch.testing.assert_close(
            found.change, metric(x, at).detach() - metric(parts.start, at).detach(), atol=1e-4, rtol=0
        )
        one = gradient_times_activation(metric, parts)
        assert (one.missing > 10 * (TOLERANCE * one.change.abs() + FLOOR)).any()
        assert np.isfinite(ablation(metric, parts, parts.values != 0).rest.numpy()).all()
    along = (torch.arange(5000) + 0.5)[:, None] / 5000
    for place in at[:2]:  # the last of the parts, by a plain sum at midpoints
        rows = parts.start[place] + along * (parts.x - parts.start)[place]
        slopes = gradients(metric, rows, place.repeat(5000)).mean(0)
        expected = parts.moves[place] * (parts.directions @ slopes)
        allowed = TOLERANCE * found.change[place].abs() + FLOOR
        assert ((found.features[place] - expected).abs() <= allowed).all()
