"""Bad input to everything that takes rows and labels: one clear line that names the argument."""

import warnings

import jaxtyping
import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from toolkit import probe_search
from toolkit.control_tasks import control_labels
from toolkit.errors import UserError
from toolkit.probes import (
    LDAProbe,
    LinearProbe,
    LowRankProbe,
    MeanDifferenceProbe,
    MLPProbe,
    permutation_null,
    select_probe,
    selectivity,
)

DRAW = np.random.default_rng(0)
X, Y = DRAW.standard_normal((24, 3)), np.arange(24) % 2
GROUPS, TOKENS = np.repeat(np.arange(8), 3), np.arange(24) % 5
MEANS = MeanDifferenceProbe()
CALLS = {
    "fit": lambda X, y, groups, tokens, probe: probe.fit(X, y, groups=groups),
    "permutation_null": lambda X, y, groups, tokens, probe: permutation_null(
        probe, X, y, scheme="iid", groups=groups, n=3
    ),
    "selectivity": lambda X, y, groups, tokens, probe: selectivity(probe, X, y, groups=groups, tokens=tokens, n=3),
    "select_probe": lambda X, y, groups, tokens, probe: select_probe(
        X, y, groups=groups, tokens=tokens, tasks=2, parts=3, candidates={"one": probe}
    ),
}


def call(name, **changed):
    given = {"X": X, "y": Y, "groups": GROUPS, "tokens": TOKENS, "probe": LinearProbe(l2=0.1), **changed}
    return CALLS[name](**given)


def refusal(name, **changed):
    with pytest.raises(UserError) as error:
        call(name, **changed)
    assert "\n" not in str(error.value)
    return str(error.value)


def without(values, row, missing):
    found = np.asarray(values).astype(object if missing is None else float)
    found[row] = missing
    return found


@pytest.mark.parametrize("name", CALLS)
def test_good_input_is_taken(name):
    assert call(name) is not None


ROWS_AND_LABELS = [
    ({"y": np.zeros(24)}, "y holds one class only (0.0)"),
    ({"y": Y[:23]}, "y has shape (23,): expected (24,), one for each row of X"),
    ({"y": np.stack([Y, Y], 1)}, "y: "),
    ({"y": None}, "y should be"),
    ({"y": without(Y, 4, np.nan)}, "y lacks a label for row 4"),
    ({"y": without(Y, 4, None)}, "y lacks a label for row 4"),
    ({"y": DRAW.standard_normal(24)}, "y: Unknown label type: continuous"),
    ({"X": without(X.ravel(), 7, np.nan).reshape(24, 3)}, "X holds NaN or infinity, first in row 2"),
    ({"X": without(X.ravel(), 7, np.inf).reshape(24, 3)}, "X holds NaN or infinity, first in row 2"),
    ({"X": np.ones((24, 3))}, "X: every row is the same, so all its columns are constant"),
    ({"groups": without(GROUPS, 3, None)}, "groups lacks a document for row 3"),
    ({"groups": without(GROUPS, 3, np.nan)}, "groups lacks a document for row 3"),
    ({"groups": GROUPS[:9]}, "groups has shape (9,): expected (24,)"),
    ({"groups": np.array(["a", *range(23)], object)}, "groups mixes types that cannot be sorted"),
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("changed", "message"), ROWS_AND_LABELS, ids=[m for _, m in ROWS_AND_LABELS])
def test_rows_labels_and_documents(name, changed, message):
    assert refusal(name, **changed).startswith(message)


SETTINGS = [
    (LinearProbe(l2=0.0), "l2=0 with "),
    (LowRankProbe(1, l2=0.0), "l2=0 with "),
    (MLPProbe(2, l2=0.0, max_steps=5), "l2=0 with "),
    (LDAProbe(shrinkage=0.0), "shrinkage=0 with "),
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("probe", "message"), SETTINGS, ids=[str(probe) for probe, _ in SETTINGS])
def test_more_columns_than_rows_without_regularisation(name, probe, message):
    wide = DRAW.standard_normal((24, 30))
    assert refusal(name, probe=probe, X=wide).startswith(message)
    # the control: with a penalty, or with fewer columns, there is one best fit
    call(name, probe=type(probe)(**{**probe.get_params(), message.split("=")[0]: 0.1}), X=wide)
    if isinstance(probe, LDAProbe):
        call(name, probe=probe)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("setting", [{"l2": "a"}, {"l2": -1.0}, {"l2": np.inf}, {"class_weight": "even"},
                                     {"class_weight": {7: 1.0}}, {"folds": 1}, {"l2": True}, {"tolerance": np.nan},
                                     {"tolerance": -1.0}, {"class_weight": {0: -1.0}}, {"class_weight": {0: np.nan}},
                                     {"class_weight": {0: 0, 1: 0.0}}, {"random_state": None}, {"random_state": -1},
                                     {"device": "gpu"}, {"device": None}], ids=str)  # fmt: skip
def test_a_probes_settings_are_checked_wherever_it_is_fitted(name, setting):
    assert next(iter(setting)) in refusal(name, probe=LinearProbe(**{"l2": 0.1, **setting}))


FOLDS = {"fit": "folds=3", "permutation_null": "parts=3", "selectivity": "parts=3", "select_probe": "parts=3"}


@pytest.mark.parametrize("name", CALLS)
def test_a_class_with_fewer_members_than_folds(name):
    y = np.where(np.arange(24) < 2, "rare", "often")
    message = f"y: class 'rare' has 2 members, fewer than {FOLDS[name]}"
    assert refusal(name, y=y, probe=LinearProbe()).startswith(message)


@pytest.mark.parametrize("name", CALLS)
def test_groups_that_leave_a_fold_empty(name):
    message = f"groups holds 2 documents, fewer than {FOLDS[name]}"
    assert refusal(name, groups=np.arange(24) // 12, probe=LinearProbe()).startswith(message)


@pytest.mark.parametrize("parts", [1, 0])
def test_parts_are_at_least_two(parts):
    for found in (
        lambda: permutation_null(MEANS, X, Y, scheme="iid", groups=GROUPS, n=3, parts=parts),
        lambda: selectivity(MEANS, X, Y, tokens=TOKENS, groups=GROUPS, n=3, parts=parts),
        lambda: select_probe(X, Y, tokens=TOKENS, groups=GROUPS, candidates={"one": MEANS}, parts=parts),
    ):
        with pytest.raises(UserError, match="parts="):
            found()


TYPES = [
    (TOKENS[:5], "tokens has shape (5,): expected (24,)"),
    (without(TOKENS, 2, None), "tokens lacks a type for row 2"),
    (without(TOKENS, 2, np.nan), "tokens lacks a type for row 2"),
    (None, "tokens has shape ()"),
]


@pytest.mark.parametrize(("tokens", "message"), TYPES, ids=[m for _, m in TYPES])
def test_tokens(tokens, message):
    assert refusal("selectivity", tokens=tokens).startswith(message)
    assert refusal("select_probe", tokens=tokens).startswith(message)
    with pytest.raises(UserError) as error:
        control_labels(Y, tokens, n=2, seed=0)
    assert str(error.value).startswith(message)


CONSTANT = [LinearProbe(l2=0.1), LinearProbe(l2=0.0), LinearProbe(loss="squared", l2=0.0), LowRankProbe(1, l2=0.1),
            MEANS, LDAProbe(), LDAProbe(shrinkage=0.0), MLPProbe(4, l2=0.1)]  # fmt: skip


@pytest.mark.parametrize("probe", CONSTANT, ids=str)
def test_a_constant_column_is_taken_and_not_read(probe):
    labels = (X[:, 0] + np.random.default_rng(1).standard_normal(24) > 0).astype(int)
    padded = probe.fit(np.hstack([X, np.full((24, 1), 7.0)]), labels).directions_[0].copy()
    plain = probe.fit(X, labels).directions_[0]
    assert np.isfinite(padded).all()
    if isinstance(probe, MLPProbe):  # its first weights are other draws
        return
    assert abs(padded[-1]) < 1e-6
    # the spherical part of a discriminant's covariance is a mean over columns, that one too, so lengths differ there
    cosine = padded[:3] @ plain / np.linalg.norm(padded) / np.linalg.norm(plain)
    assert cosine == pytest.approx(1, abs=0.02 if probe == CONSTANT[5] else 1e-6)
    if isinstance(probe, (LinearProbe, LowRankProbe)):
        np.testing.assert_allclose(padded[:3], plain, rtol=1e-4)


@pytest.mark.parametrize("name", list(CALLS)[1:])
@pytest.mark.parametrize("probe", CONSTANT[:-1], ids=str)
def test_nulls_and_selectivity_take_a_constant_column(name, probe):
    found = call(name, X=np.hstack([X, np.full((24, 1), 7.0)]), probe=probe)
    scores = {
        "permutation_null": lambda: [found.observed, *found.null],
        "selectivity": lambda: [found.accuracy, *found.control_accuracies],
        "select_probe": lambda: found.value,
    }
    assert np.isfinite(scores[name]()).all()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("steps", [0, -1, 2.5])
@pytest.mark.parametrize("kind", [LowRankProbe, MLPProbe])
def test_steps_are_at_least_one(name, steps, kind):
    assert refusal(name, probe=kind(1, l2=0.1, max_steps=steps)).startswith(f"max_steps={steps}")


SCALES = [("float32", 1e20), ("float32", 1e-20), ("float64", 1e160), ("float64", 1e-160)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=str)
def test_rows_whose_squares_leave_their_type(name, dtype, scale):
    assert f"squares leave the range of {dtype}" in refusal(name, X=(X * scale).astype(dtype))
    call(name, X=(X * scale ** (1 / 4)).astype(dtype))


@pytest.mark.parametrize("text", [X.astype(str), X.astype(str).astype(object), X.astype(str).tolist()],
                         ids=["array", "objects", "list"])  # fmt: skip
@pytest.mark.parametrize("name", CALLS)
def test_rows_of_text(name, text):
    assert refusal(name, X=text).startswith("X holds")


@pytest.mark.parametrize("name", list(CALLS)[1:])
@pytest.mark.parametrize(("probe", "message"), [(LogisticRegression(), "is a LogisticRegression: expected a probe"),
                                                (LinearProbe, "is the class LinearProbe: expected a probe"),
                                                (None, "is a NoneType: expected a probe")], ids=str)  # fmt: skip
def test_what_is_no_probe(name, probe, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    assert message in refusal(name, probe=probe)


ARGUMENTS = [
    (permutation_null, {"scheme": None}, "unknown scheme 'None'"),
    (permutation_null, {"score": None}, "unknown score 'None'"),
    (permutation_null, {"parts": "3"}, "parts='3'"),
    (permutation_null, {"n": 2.5}, "n=2.5"),
    (permutation_null, {"seed": None}, "seed=None"),
    (permutation_null, {"seed": -1}, "seed=-1"),
    (selectivity, {"parts": "3"}, "parts='3'"),
    (selectivity, {"n": 2.5}, "n=2.5"),
    (selectivity, {"n": 1}, "n=1: expected a whole number of at least 2"),
    (selectivity, {"confidence": "a"}, "confidence='a'"),
    (selectivity, {"confidence": np.nan}, "confidence=nan"),
    (selectivity, {"seed": None}, "seed=None"),
    (select_probe, {"parts": "3"}, "parts='3'"),
    (select_probe, {"confidence": "a"}, "confidence='a'"),
    (select_probe, {"seed": -1}, "seed=-1"),
    (select_probe, {"tasks": 1}, "tasks=1: expected a whole number of at least 2"),
    (select_probe, {"redraws": 0.5}, "redraws=0.5"),
    (select_probe, {"candidates": [MEANS]}, "candidates is a list: expected probes by name"),
    (select_probe, {"candidates": {"one": LDAProbe}}, "candidates['one'] is the class LDAProbe"),
]


@pytest.mark.parametrize(("function", "given", "message"), ARGUMENTS, ids=[m for *_, m in ARGUMENTS])
def test_arguments_out_of_range(function, given, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    own = {"groups": GROUPS, **({"n": 3, "scheme": "iid"} if function is permutation_null else {"tokens": TOKENS})}
    first = () if function is select_probe else (MEANS,)
    with pytest.raises(UserError) as error:
        function(*first, X, Y, **{**own, **given})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_penalty_that_cannot_be_chosen_is_refused_before_the_search(monkeypatch):
    monkeypatch.setattr(probe_search, "_held_out", lambda *given: pytest.fail("the search has begun"))
    y = np.where(GROUPS == 2, 1, 0)
    candidates = {"means": MEANS, "chosen": LinearProbe()}
    with pytest.raises(UserError, match="all of class 1 lies in one of 3 folds; lower folds, or give l2"):
        select_probe(X, y, groups=GROUPS, tokens=TOKENS, candidates=candidates, parts=3)


def test_steps_that_run_out_are_said_and_counted():
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((90, 6)), np.arange(90) % 4
    with pytest.warns(ConvergenceWarning, match="LowRankProbe: 3 steps did not reach the tolerance"):
        assert LowRankProbe(1, l2=0.01, max_steps=3).fit(X, y).n_iter_ == 3
    with pytest.warns(ConvergenceWarning, match="MLPProbe: 3 steps"):
        MLPProbe(2, l2=0.01, max_steps=3, tolerance=1e-6).fit(X, y)
    with pytest.warns(ConvergenceWarning):
        permutation_null(LowRankProbe(1, l2=0.01, max_steps=3), X, y, scheme="iid", n=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LinearProbe(l2=0.01).fit(X, y).n_iter_ > 1
        assert LDAProbe().fit(X, y).n_iter_ == 1
        MLPProbe(2, l2=0.01, max_steps=3).fit(X, y)  # steps, not a tolerance, are what ends it


TENSORS = [lambda x: x.to(torch.bfloat16), lambda x: x.half(), lambda x: x.clone().requires_grad_()]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("given", TENSORS, ids=["bfloat16", "half", "with gradients"])
def test_tensors_of_any_kind_are_taken(name, given):
    rows = given(torch.from_numpy(X).float())
    call(name, X=rows, y=torch.from_numpy(Y), groups=torch.from_numpy(GROUPS), tokens=torch.from_numpy(TOKENS))
    fitted = LinearProbe(l2=0.1).fit(rows, given(torch.from_numpy(Y).float()))
    plain = LinearProbe(l2=0.1).fit(rows.detach().float().numpy(), Y)
    np.testing.assert_array_equal(fitted.decision_function(rows), plain.decision_function(rows))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_labels_on_a_gpu_are_taken():
    on = {"X": torch.from_numpy(X).cuda(), "y": torch.from_numpy(Y).cuda()}
    assert LinearProbe(l2=0.1).fit(**on).score(X, Y) > 0.5
