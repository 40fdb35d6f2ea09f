"""What a world must hold: anybody's world is opened and brought to one form, and what breaks the contract is named."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from controls.world_read_and_idle import ReadAndIdle
from controls.worlds import WORLDS, World, WorldSample, check_sample, open_world
from toolkit.errors import UserError

ROWS, D = 12, 3
H = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))
MATRIX = torch.ones(D, 2)


class Outside:
    """A world that is not ours, with fields to be replaced."""

    name = "outside"

    def __init__(self, **changed):
        self.changed = changed

    def sample(self, seed, n):
        fields = {
            "activations": H,
            "labels": {"a": np.arange(ROWS) % 2},
            "groups": np.arange(ROWS) // 3,
            "tokens": None,
            "outputs": lambda h: torch.tanh(h @ MATRIX.to(h.dtype)),
            "targets": {"a": 1},
            "truth": {"a": "model"},
            "null_sample": lambda kind, seed: H + seed,
        }
        return SimpleNamespace(**{**fields, **self.changed})


def checked(**changed):
    world = Outside(**changed)
    return check_sample(world.sample(0, ROWS), world)


@pytest.mark.parametrize("name", WORLDS)
def test_each_name_opens_its_world(name):
    world = open_world(name)
    assert world.name == name
    assert isinstance(world, World)
    assert type(open_world(WORLDS[name])) is type(world)


@pytest.fixture
def module(monkeypatch):
    """An importable module with worlds, good and bad."""
    made = ModuleType("somebodys_worlds")
    made.Outside = Outside
    made.Needs = lambda width: None
    made.Nameless = type("Nameless", (), {"sample": lambda self, seed, n: None})
    made.Dumb = type("Dumb", (), {"name": "dumb"})
    monkeypatch.setitem(sys.modules, "somebodys_worlds", made)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("read-and-idl", "unknown world 'read-and-idl': did you mean 'read-and-idle'"),
        ("nowhere.worlds:W", "the module 'nowhere.worlds' cannot be imported: No module named 'nowhere'"),
        (":W", "the module '' cannot be imported"),
        ("somebodys_worlds:Missing", "no attribute 'Missing'; expected package.module:ClassName"),
        ("somebodys_worlds:Needs", r"Needs\(\) failed: .*missing 1 required .*'width'; it is built without arguments"),
        ("somebodys_worlds:Nameless", "is no world: expected a text `name` and a method `sample"),
        ("somebodys_worlds:Dumb", "is no world"),
    ],
)
def test_a_world_that_cannot_be_opened_is_named_in_one_line(module, name, says):
    with pytest.raises(UserError, match=says) as caught:
        open_world(name)
    assert "\n" not in str(caught.value)


def test_somebody_elses_world_opens(module):
    world = open_world("somebodys_worlds:Outside")
    assert isinstance(check_sample(world.sample(0, ROWS), world), WorldSample)


def test_arrays_of_any_make_come_out_in_one_form():
    labels = {"a": torch.arange(ROWS) % 2 == 0, "b": [0, 1] * (ROWS // 2), "c": np.arange(ROWS) % 2 * 1.0}
    sample = checked(
        activations=H.double().numpy(),
        labels=labels,
        groups=list(range(ROWS)),
        tokens=torch.arange(ROWS),
        targets={"a": np.int64(1), "b": None, "c": 0},
        truth=dict.fromkeys("abc", "absent"),
        null_sample=lambda kind, seed: None if kind == "init" else H,
    )
    assert sample.activations.dtype == torch.float64
    assert all(y.dtype == np.int64 and y.shape == (ROWS,) for y in sample.labels.values())
    assert sample.labels["a"].tolist() == [1, 0] * (ROWS // 2)
    assert (sample.groups.dtype, sample.tokens.dtype) == (np.int64, np.int64)
    assert sample.targets == {"a": 1, "b": None, "c": 0}
    assert sample.null_sample("init", 0) is None
    assert sample.null_sample("spectrum", 0).dtype == torch.float64


def test_our_own_sample_passes_as_it_is():
    world = ReadAndIdle()
    sample = world.sample(0, 100)
    same = check_sample(sample, world)
    assert torch.equal(same.activations, sample.activations)
    assert (same.targets, same.truth) == (sample.targets, sample.truth)
    assert torch.equal(same.null_sample("init", 3), sample.null_sample("init", 3))


def scribble(h):
    with torch.no_grad():
        h[0] = 0
    return h @ MATRIX


NOISE = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"activations": H[0]}, r"activations has shape \(3,\), expected \(rows, d\)"),
        ({"activations": H[:0]}, r"activations has shape \(0, 3\)"),
        ({"activations": H.long()}, "activations holds torch.int64, expected floating-point"),
        ({"activations": H * float("nan")}, "activations holds numbers that are not finite"),
        ({"activations": "h"}, "activations is a str, expected numbers"),
        ({"labels": {}}, r"labels is dict \{\}, expected \{feature: labels\}"),
        ({"labels": {"a": np.zeros(5, int)}}, r"labels\['a'\] has shape \(5,\), expected \(12,\)"),
        ({"labels": {"a": np.arange(ROWS)}}, r"labels\['a'\] holds \[0, 1, 2, 3\], expected 0 and 1"),
        ({"labels": {"a": np.full(ROWS, 0.5)}}, r"labels\['a'\] holds float64, expected integers"),
        ({"groups": np.zeros((ROWS, 1), int)}, r"groups has shape \(12, 1\), expected \(12,\)"),
        ({"groups": ["x"] * ROWS}, "groups holds <U1, expected integers"),
        ({"tokens": np.zeros(4, int)}, r"tokens has shape \(4,\)"),
        ({"outputs": 3}, "outputs is a int, expected a function"),
        ({"outputs": lambda h: h @ H}, "outputs failed: .*shapes"),
        ({"outputs": lambda h: h.sum(1)}, r"outputs returns \(12,\), expected a tensor of shape \(12, outputs\)"),
        ({"outputs": lambda h: h.tolist()}, "outputs returns list"),
        ({"outputs": lambda h: h[:5]}, r"outputs returns \(5, 3\)"),
        ({"outputs": lambda h: h / 0}, "outputs returns numbers that are not finite"),
        ({"outputs": lambda h: h.detach()}, "outputs has no gradient"),
        ({"outputs": lambda h: h + torch.randn(1, generator=NOISE)}, "outputs differs between two calls"),
        ({"outputs": scribble}, "outputs (writes into its argument|failed)"),
        ({"targets": {}}, r"targets names \[\], expected the features of labels, \['a'\]"),
        ({"targets": {"a": 2}}, r"targets\['a'\] is 2, expected None or an output from 0 to 1"),
        ({"targets": {"a": True}}, r"targets\['a'\] is True"),
        ({"truth": {"b": "model"}}, r"truth names \['b'\]"),
        ({"truth": {"a": "Model"}}, r"truth\['a'\] is 'Model', expected one of model, dataset"),
        ({"truth": None}, "truth names None"),
        ({"null_sample": None}, "null_sample is a NoneType, expected a function"),
        ({"null_sample": lambda kind, seed: H[:3]}, r"null_sample\('init', 0\) has shape \(3, 3\), expected \(12, 3\)"),
        ({"null_sample": lambda kind, seed: 1 / 0}, r"null_sample\('init', 0\) failed: division by zero"),
    ],
)
def test_what_breaks_the_contract_is_named_in_one_line(changed, says):
    with pytest.raises(UserError, match=f"world 'outside' breaks its contract: {says}") as caught:
        checked(**changed)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    sample = Outside().sample(0, ROWS)
    del sample.groups
    with pytest.raises(UserError, match="groups is missing, expected the fields activations, labels"):
        check_sample(sample, Outside())


def test_a_null_that_breaks_later_is_named_when_it_does():
    sample = checked(null_sample=lambda kind, seed: H if seed == 0 else H[:1])
    assert sample.null_sample("init", 0) is not None
    with pytest.raises(UserError, match=r"null_sample\('spectrum', 7\) has shape \(1, 3\)"):
        sample.null_sample("spectrum", 7)
