"""Steering at matched divergence: known networks, nulls with their power, a language model run as a whole as oracle."""

import inspect

import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from toolkit import steering_effects as module
from toolkit.downstream import LanguageDownstream
from toolkit.errors import UserError
from toolkit.interventions import Add, run
from toolkit.language import load_model
from toolkit.matched_scale import TOLERANCE, matched_scales
from toolkit.steering import dual_basis
from toolkit.steering_effects import steering_effects

D, OUTPUTS, PLACES = 12, 5, 30


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


READS, ROWS = draw(OUTPUTS, D), torch.as_tensor(draw(PLACES, D, seed=1))
UNIT = np.eye(OUTPUTS)


def linear(rows, at):
    return rows @ torch.as_tensor(READS).mT


def rectified(rows, at):
    readings = linear(rows, at)
    return readings.relu() + 0.2 * readings


def linear_softmax(rows, at):
    return linear(rows, at).log_softmax(1)


def steered(network, directions, effects=UNIT, **options):
    given = {"divergence": "squared", "random": 0} | options
    return steering_effects(network, ROWS, directions, effects, **given)


@pytest.mark.parametrize("network", [linear, rectified])
def test_along_the_networks_own_dual_nothing_is_off_target_and_along_its_rows_something_is(network):
    found = steered(network, {"dual": dual_basis(READS).vectors, "rows": READS.T})
    np.testing.assert_allclose(found.share[0], 1, atol=1e-9)
    np.testing.assert_allclose(found.off_target[0], 0, atol=1e-9)
    leaks = found.leakage[0][~np.eye(OUTPUTS, dtype=bool)]
    np.testing.assert_allclose(leaks, 0, atol=1e-9)
    assert (found.share[1] < 0.99).all()
    assert (np.abs(found.leakage[1] - np.diag(np.diag(found.leakage[1]))).max(1) > 0.05).all()


def test_in_a_linear_network_length_target_and_share_are_in_closed_form():
    V = draw(D, OUTPUTS, seed=2)
    found = steered(linear, {"any": V}, kl=0.3)
    moved = READS @ (V / np.linalg.norm(V, axis=0))
    lengths = np.linalg.norm(moved, axis=0)
    np.testing.assert_allclose(found.scales[0], np.sqrt(0.6) / lengths, rtol=TOLERANCE)
    np.testing.assert_allclose(found.target[0], found.scales[0] * np.diag(moved))
    cosine = np.diag(moved) / lengths
    np.testing.assert_allclose(found.share[0], cosine.clip(0) ** 2, atol=1e-9)
    np.testing.assert_allclose(found.leakage[0], (found.scales[0] * moved).T)


@pytest.mark.parametrize(("network", "divergence"), [(linear_softmax, "kl"), (rectified, "squared")])
@pytest.mark.parametrize("kl", [1e-3, 0.1, 1.5])
def test_every_vector_is_brought_to_the_same_divergence(network, divergence, kl):
    found = steered(network, {"a": draw(D, OUTPUTS, seed=3), "b": 1e-6 * READS.T}, divergence=divergence, kl=kl)
    np.testing.assert_allclose(found.divergence.mean(2), kl, rtol=TOLERANCE * 1.01)
    assert (found.explained <= found.divergence + 1e-12).all()


def test_lengths_do_not_matter_and_signs_do():
    V = draw(D, OUTPUTS, seed=4)
    found = steered(linear, {"v": V, "ten": 10 * V, "minus": -V})
    np.testing.assert_allclose(found.along[1], found.along[0])
    np.testing.assert_allclose(found.target[2], -found.target[0])
    assert ((found.share[0] > 0) != (found.share[2] > 0)).all()


def test_what_cannot_move_the_outputs_that_far_is_nan_and_hurts_no_other():
    unread = np.linalg.svd(READS)[2][-1]
    V = dual_basis(READS).vectors.copy()
    V[:, 1], V[:, 3] = 0, unread
    found = steered(linear, {"dual": V}, random=9)
    assert np.isnan(found.scales[0]).tolist() == [False, True, False, True, False]
    assert np.isnan(found.p[0]).tolist() == np.isnan(found.target[0]).tolist() == np.isnan(found.scales[0]).tolist()
    np.testing.assert_allclose(found.share[0, [0, 2, 4]], 1, atol=1e-9)
    assert str(found).count(" -") >= 12


def test_the_search_finds_the_crossing_of_curves_far_from_a_square():
    curves = [lambda s: s**2, lambda s: s**6, lambda s: s**0.4, lambda s: 2 * s**2 / (1 + s**2), lambda s: s**2 / 1e8]
    curves += [lambda s: (s - 0.5).clip(0) ** 2, lambda s: s**2 / (4 + s**2)]  # flat at first; ends at 1

    def measure(vectors):
        which = vectors.abs().argmax(1).tolist()
        return torch.tensor([float(curves[i](np.float64(v.norm()))) for i, v in zip(which, vectors, strict=True)])

    found = matched_scales(measure, torch.eye(7, dtype=torch.float64), 1.0, 1.0)
    for i in range(6):
        assert float(curves[i](found[i].numpy())) == pytest.approx(1, rel=TOLERANCE * 1.01)
    # s^2 / (4 + s^2) stays below 1, and comes within one percent of it
    assert float(found[6]) > 10
    never = matched_scales(lambda v: 0.5 - 0.5 / (1 + v.square().sum(1)), torch.eye(2), 1.0, 1.0)
    assert never.isnan().all()


def test_random_directions_have_the_vectors_length_and_steer_every_place_both_ways():
    seen = []

    def watched(rows, at):
        seen.append((rows - ROWS[at], at))
        return linear(rows, at)

    found = steered(watched, {"dual": dual_basis(READS).vectors[:, :1]}, UNIT[:1], random=20)
    added, at = seen[-1]
    np.testing.assert_allclose(added.norm(dim=1), found.scales[0, 0])
    assert torch.bincount(at).tolist() == [40] * PLACES
    np.testing.assert_allclose(added.sum(0), 0, atol=1e-9)
    directions = np.unique((added / added.norm(dim=1, keepdim=True)).numpy().round(9), axis=0)
    assert len(directions) == 40


def test_p_values_of_directions_that_are_random_themselves_are_uniform_and_of_the_dual_least():
    V = np.concatenate([draw(D, 150, seed=5)], 1)
    families = {f"{i}": V[:, [i]] for i in range(150)}
    found = steered(linear, families | {"dual": dual_basis(READS).vectors[:, :1]}, UNIT[:1], random=99)
    # the null draws are shared: their directions are the same for all 150, so ask for a set that covers them well
    assert stats.kstest(found.p[:150, 0], "uniform").pvalue > 1e-3
    assert found.p[150, 0] == 0.01
    assert found.p_share[150, 0] == 0.01


def test_numbers_follow_from_the_seed():
    one, two, other = (steered(linear, {"v": READS.T}, random=5, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.random_target, two.random_target)
    assert (one.random_target != other.random_target).all()
    np.testing.assert_array_equal(one.along, other.along)


@pytest.fixture(scope="module")
def language():
    model = load_model()
    texts = ["The president of the United States met the congress.", "It is a film with a good story and bad actors."]
    ids = [model.tokenizer(text).input_ids for text in texts]
    length = min(map(len, ids))
    tokens = torch.tensor([each[:length] for each in ids])
    places = torch.tensor([[0, 3], [0, 6], [1, 2], [1, 7]])
    return model, tokens, places, LanguageDownstream(model, "blocks.1.hook_resid_post", tokens, places)


def test_a_language_model_steered_is_the_model_run_with_the_vector_added(language):
    model, tokens, places, rest = language
    e = draw(1, model.vocabulary)
    direction = draw(model.d_model, 1, seed=1)
    came = tokens[places[:, 0], places[:, 1] + 1]
    found = steering_effects(rest, rest.activations, {"v": direction}, e, kl=0.05, next_tokens=came, random=0)
    vector = torch.as_tensor(found.scales[0, 0] * direction[:, 0] / np.linalg.norm(direction)).float()
    clean = run(model, tokens).log_softmax(2)
    centre = e[0] - e[0].mean()
    for i, (sequence, position) in enumerate(places.tolist()):
        kl, loss, along = [], [], []
        for sign in (1, -1):
            add = Add(rest.hook, sign * vector, scale=1.0, positions=[position])
            q = run(model, tokens[[sequence]], [add]).log_softmax(2)[0, position].double().numpy()
            p = clean[sequence, position].double().numpy()
            kl.append((np.exp(q) * (q - p)).sum())
            loss.append(p[came[i]] - q[came[i]])
            along.append(sign * ((q - p) @ centre) / (centre @ centre))
        assert found.divergence[0, 0, i] == pytest.approx(np.mean(kl), rel=1e-3)
        assert found.loss[0, 0, i] == pytest.approx(np.mean(loss), abs=1e-4)
        assert found.along[0, 0, 0, i] == pytest.approx(np.mean(along), abs=1e-6)
    assert found.divergence.mean() == pytest.approx(0.05, rel=TOLERANCE * 1.01)


def test_next_tokens_may_lie_on_another_device():
    with FakeTensorMode():  # refuses to mix devices, as a GPU does
        clean = torch.empty(4, 7, device="meta")
        assert module._rise(clean, clean + 1, torch.zeros(4, dtype=torch.long)).device.type == "meta"


def test_arrays_are_taken_as_tensors_are():
    came = torch.arange(PLACES) % OUTPUTS
    given = {"divergence": "kl", "kl": 0.1, "random": 0}
    one = steering_effects(linear_softmax, ROWS, {"v": READS.T}, UNIT, next_tokens=came, **given)
    vectors = torch.tensor(READS.T, requires_grad=True)
    two = steering_effects(linear_softmax, ROWS.numpy(), {"v": vectors}, UNIT, next_tokens=came.numpy(), **given)
    np.testing.assert_array_equal(one.along, two.along)
    np.testing.assert_array_equal(one.loss, two.loss)
    half = steered(linear, {"v": vectors.bfloat16()})
    np.testing.assert_allclose(half.along, steered(linear, {"v": vectors.detach().bfloat16().double()}).along)


def test_the_all_ones_direction_moves_nothing_in_a_model_with_layer_norm(language):
    model, _, _, rest = language
    ones, e = np.ones(model.d_model), draw(1, model.vocabulary)
    found = steering_effects(rest, rest.activations, {"ones": ones}, e, random=0)
    assert np.isnan(found.scales).all() or found.scales.min() > 100 * rest.activations.norm(dim=1).mean()


def test_the_table_has_a_line_for_each_family_of_each_attribute():
    found = steered(linear, {"dual": dual_basis(READS).vectors, "rows": READS.T}, attributes=list("abcde"), random=9)
    lines = str(found).splitlines()
    assert len(lines) == 11
    assert [line.split()[:2] for line in lines[1:3]] == [["a,", "dual"], ["a,", "rows"]]
    shown = dict(zip(lines[0].replace("off target", "off").replace("p target", "p").replace("p share", "ps").split(),
                     lines[1].split()[2:], strict=True))  # fmt: skip
    assert float(shown["target"]) == pytest.approx(found.target[0, 0], rel=0.01)
    assert float(shown["off"]) < 1e-9
    assert shown["loss"] == "-"


CAME = {"divergence": "kl", "downstream": linear_softmax}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"directions": {}}, "directions is empty"),
        ({"directions": {"v": draw(D, 4)}}, r"directions\['v'\] has shape \(12, 4\): expected \(12, 5\)"),
        ({"directions": {"v": np.full((D, 5), np.nan)}}, r"directions\['v'\] holds NaN"),
        ({"effects": np.zeros((5, OUTPUTS))}, "effects: row 0 moves nothing"),
        ({"effects": np.full((5, OUTPUTS), np.nan)}, "effects holds NaN"),
        ({"effects": draw(5, 7)}, r"downstream gave \(30, 5\): expected finite \(30, 7\)"),
        ({"kl": 0.0}, "kl=0.0: expected a positive number"),
        ({"random": -1}, "random=-1"),
        ({"divergence": "l2"}, "unknown divergence 'l2'"),
        ({"attributes": ["a"]}, "attributes has 1 names for 5 effects"),
        ({"next_tokens": torch.zeros(30, dtype=torch.long)}, "next_tokens: expected one for each of 30 places"),
        ({"activations": torch.full((3, D), torch.nan)}, "activations: expected rows without NaN"),
        ({"activations": ROWS[0]}, r"activations are \(12,\) of torch.float64: expected \(places, d\)"),
        ({"activations": ROWS.long()}, "activations are .* of torch.int64: expected"),
        ({"random": 2.5}, "random=2.5: expected a whole number"),
        ({"seed": None}, "seed=None: expected a whole number"),
        ({"directions": [READS.T]}, "directions is a list: expected each family's vectors by its name"),
        ({"directions": {"v": np.full((D, 5), "a")}}, r"directions\['v'\] holds <U1: expected real numbers"),
        (CAME | {"next_tokens": torch.full((30,), OUTPUTS)}, "next_tokens run from 5 to 5: outputs from 0 to 4"),
        (CAME | {"next_tokens": torch.full((30,), -1)}, "next_tokens run from -1 to -1: outputs from 0 to 4"),
        (CAME | {"next_tokens": torch.zeros(30)}, "next_tokens holds torch.float32: expected token ids"),
        (CAME | {"next_tokens": torch.zeros(30, 1).long()}, "next_tokens: expected one for each of 30 places"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(change, message):
    given = {"downstream": linear, "activations": ROWS, "directions": {"v": READS.T}, "effects": UNIT}
    given |= {"divergence": "squared", "random": 0} | change
    with pytest.raises(UserError, match=message) as error:
        inspect.unwrap(steering_effects)(**given)  # without the tests' own checks of types
    assert "\n" not in str(error.value)
