"""Settings: contradictions are refused by name, whatever the numbers; dictionaries go in and out."""

import json
import math
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from toolkit.configs import (
    ARCHITECTURES,
    PRESETS,
    EmbeddingConfig,
    RunConfig,
    SAEConfig,
    ToyModel,
    ToyTraining,
    differing,
    from_dict,
    to_dict,
)
from toolkit.errors import UserError

HUGE = 10**400
CONTRADICTIONS = [
    *[(ToyModel, {name: value}, name) for name in ("features", "hidden", "instances") for value in (0, -3)],
    *[(ToyModel, {"density": value}, "density") for value in (0, -0.1, 1.5, math.nan, math.inf, (0.1, 0), ())],
    *[(ToyModel, {"importance": value}, "importance") for value in (0, -1, math.nan, math.inf)],
    (ToyModel, {"output": "sigmoid"}, "output"),
    (ToyModel, {"hidden_activation": "gelu"}, "hidden_activation"),
    (ToyModel, {"density": (0.1, 0.2, 0.3), "instances": 2}, "instances"),
    *[(ToyTraining, {name: value}, name) for name in ("toy_steps", "toy_batch") for value in (0, -1)],
    *[(ToyTraining, {"toy_lr": value}, "toy_lr") for value in (0, -1e-3, math.nan, math.inf)],
    (SAEConfig, {"architecture": "topkk"}, "architecture"),
    *[(SAEConfig, {name: 0}, name) for name in ("width", "k", "steps", "batch", "lr", "dead_after", "bandwidth")],
    *[(SAEConfig, {name: math.nan}, name) for name in ("k", "lr", "bandwidth", "sparsity")],
    *[(SAEConfig, {"sparsity": value}, "sparsity") for value in (-1, math.inf)],
    *[(SAEConfig, {"architecture": kind, "k": 9, "width": 8}, "k") for kind in ("topk", "batchtopk", "matryoshka")],
    (SAEConfig, {"architecture": "topk", "k": 1.5}, "k"),
    (SAEConfig, {"architecture": "batchtopk", "k": 0.01, "batch": 50}, "k"),
    (SAEConfig, {"architecture": "matryoshka", "width": 1, "k": 1}, "width"),
    *[(EmbeddingConfig, {"held_out": value}, "held_out") for value in (1, -0.1, math.nan, math.inf)],
    (EmbeddingConfig, {"model": ""}, "model"),
    *[(RunConfig, {"seed": value}, "seed") for value in (-1, 2**31)],
    (RunConfig, {"device": "tpu"}, "device"),
]


@pytest.mark.parametrize(
    ("cls", "values", "field"), CONTRADICTIONS, ids=[f"{c.__name__}-{v}" for c, v, _ in CONTRADICTIONS]
)
def test_each_contradiction_is_refused_by_the_name_of_its_field(cls, values, field):
    with pytest.raises(UserError, match=rf"\b{field}\b") as caught:
        cls(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", [ToyModel, ToyTraining, SAEConfig, EmbeddingConfig, RunConfig])
def test_the_defaults_stand(cls):
    assert cls() == replace(cls())


def test_the_limits_that_are_allowed_are_allowed():
    assert ToyModel(density=1).density == (1.0,)
    assert SAEConfig(sparsity=0, k=8, width=8).k == 8
    assert SAEConfig(architecture="batchtopk", k=0.5).k == 0.5
    assert SAEConfig(architecture="l1", k=99, width=8).width == 8
    assert EmbeddingConfig(held_out=0).held_out == 0
    assert RunConfig(seed=2**31 - 1).seed == 2**31 - 1


def test_scalars_of_numpy_and_torch_are_numbers():
    given = SAEConfig(width=np.int64(8), k=np.float32(2), tied=np.bool_(True), lr=torch.tensor(0.5))
    assert (given.width, given.k, given.tied, float(given.lr)) == (8, 2, True, 0.5)


def test_a_wrong_choice_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'batchtopk'"):
        SAEConfig(architecture="batch-topk")


@pytest.mark.parametrize("given_as", [0.2, (0.2,), [0.2]])
def test_a_density_given_alone_or_in_a_list_is_a_tuple(given_as):
    assert ToyModel(density=given_as).density == (0.2,)


anything = st.one_of(
    st.integers(-3, 3), st.integers(), st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([HUGE, -HUGE])
)


@given(
    features=anything,
    hidden=anything,
    instances=anything,
    importance=anything,
    density=st.one_of(anything, st.lists(anything, max_size=4), st.lists(anything, max_size=4).map(tuple)),
)
@example(features=5, hidden=2, instances=2, importance=1, density=HUGE)
def test_a_toy_model_takes_any_numbers_or_raises_a_user_error(**values):
    with suppress(UserError):
        model = ToyModel(**values)
        assert min(model.features, model.hidden, model.instances) > 0
        assert 0 < len(model.density) <= model.instances
        assert all(0 < value <= 1 for value in model.density)


@given(
    architecture=st.sampled_from(ARCHITECTURES),
    **dict.fromkeys(("width", "k", "sparsity", "steps", "batch", "lr", "dead_after", "bandwidth"), anything),
)
@example(architecture="topk", width=8, k=HUGE, sparsity=1, steps=1, batch=1, lr=1, dead_after=1, bandwidth=1)
def test_an_sae_takes_any_numbers_or_raises_a_user_error(**values):
    with suppress(UserError):
        config = SAEConfig(**values)
        numbers = [value for value in asdict(config).values() if not isinstance(value, (str, bool))]
        assert all(0 <= value < math.inf for value in numbers)
        assert config.k <= config.width or config.architecture in ("l1", "jumprelu", "gated")


@pytest.mark.parametrize("name", ["features", "hidden", "instances"])
def test_a_size_that_is_no_whole_number_is_refused(name):
    with pytest.raises(UserError, match=name):
        ToyModel(**{name: 2.5})


@pytest.mark.parametrize(
    ("cls", "key", "near"),
    [(SAEConfig, "wdith", "width"), (ToyModel, "desnity", "density"), (RunConfig, "sed", "seed")],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(cls, key, near):
    with pytest.raises(UserError, match=rf"{key}.*did you mean '{near}'"):
        from_dict(cls, {key: 1})


def test_a_key_far_from_every_name_gets_the_list_and_no_guess():
    with pytest.raises(UserError, match="valid: seed, device, out") as caught:
        from_dict(RunConfig, {"zzzzzz": 1})
    assert "did you mean" not in str(caught.value)


def test_from_dict_still_checks_the_values():
    with pytest.raises(UserError, match="width"):
        from_dict(SAEConfig, {"width": 0})


@pytest.mark.parametrize(
    "config",
    [
        ToyModel(features=7, density=(0.1, 0.2), importance=0.9),
        ToyTraining(toy_lr=0.1),
        SAEConfig(architecture="gated", tied=True),
        EmbeddingConfig(frequencies="a.txt", centre=False),
        RunConfig(seed=3, out="here"),
        *[part for preset in PRESETS.values() for part in (preset.toy, preset.training, preset.sae)],
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_config_survives_the_way_through_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_differing_names_every_setting_that_changed_and_no_other():
    old = {"seed": 0, "sae": {"width": 8, "k": 1}, "toy": {"density": [0.1]}, "gone": 1}
    new = {"seed": 0, "sae": {"width": 16, "k": 1}, "toy": {"density": [0.2]}, "added": None}
    assert differing(old, new) == ["gone: 1 -> None", "sae.width: 8 -> 16", "toy.density: [0.1] -> [0.2]"]
    assert differing(old, old) == []


def test_differing_sees_a_group_replaced_by_a_value():
    assert differing({"sae": {"k": 1}}, {"sae": 3}) == ["sae: {'k': 1} -> 3"]
