"""Estimators in scikit-learn's manner: whatever they are made with and given, `fit` works or refuses in one line."""

import inspect
import math
import warnings

import jaxtyping
import numpy as np
import pytest
import torch
from fuzzing import FLOORS, assert_one_line, estimators, fuzz
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from toolkit.errors import UserError

ESTIMATORS = [cls for floor in FLOORS for cls in estimators(floor)]
ROWS = np.random.default_rng(0).normal(size=(12, 4))
LABELS = np.arange(12) % 3
WITH = {"y": LABELS, "sample_weight": np.ones(12), "groups": np.arange(12) // 2}
NUMBERS = (
    -math.inf,
    -1,
    0,
    1e-300,
    1e-9,
    0.5,
    1,
    2,
    4,
    5,
    1e300,
    math.inf,
    math.nan,
    True,
    np.int64(2),
    np.float32(0.5),
)
WRONG = (None, "", "3", "auto", "cpu", "tpu", "squared", "balanced", (), [1, 2], {}, {0: 1.0, 1: 2.0, 2: 1.0}, {7: 1})
ARRAYS = (
    *(ROWS * size for size in (0, 1e-300, 1e300, math.nan, math.inf, 1j)),
    *(ROWS.astype(kind) for kind in (np.float16, np.float32, int, bool, str, object)),
    *(ROWS[rows] for rows in (slice(0), slice(1), 0, slice(5), None, [0] * 12)),
    *(ROWS[:, columns] for columns in (slice(0), slice(1), [0] * 4)),
    *(torch.from_numpy(ROWS).to(kind) for kind in (torch.float32, torch.bfloat16, torch.int64)),
    sparse.csr_array(ROWS),
    ROWS.tolist(),
)
COLUMNS = (
    *(LABELS.astype(kind) for kind in (float, str, object, bool, complex)),
    *(np.where(LABELS == 1, value, LABELS) for value in (0.5, math.nan, math.inf, None, "a", -1)),
    *(LABELS[some] for some in (slice(0), slice(5), None, [0] * 12)),
    torch.from_numpy(LABELS),
    LABELS.tolist(),
    np.zeros(12),
    -np.ones(12),
)
EVERYTHING = st.sampled_from([*NUMBERS, *WRONG, *ARRAYS, *COLUMNS])


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Annotations are checked in tests only: without the check, what an estimator does itself is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@st.composite
def settings_of(draw, cls):
    """Up to two settings that are anything; steps stay few."""
    names = list(inspect.signature(cls).parameters)
    chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    few = {name: value for name, value in (("epochs", 2), ("max_steps", 20), ("n_nonzero", 2)) if name in names}
    return {**few, **{name: draw(st.sampled_from([*NUMBERS, *WRONG]) | EVERYTHING) for name in chosen}}


@st.composite
def data_of(draw, cls):
    """Rows and what goes with them, at most one of them broken."""
    asked = inspect.signature(cls.fit).parameters
    given = {"X": ROWS} | {name: value for name, value in WITH.items() if name in asked}
    broken = draw(st.sampled_from([None, None, *given]))
    return given if broken is None else given | {broken: draw(st.sampled_from([*ARRAYS, *COLUMNS]) | EVERYTHING)}


@pytest.mark.parametrize("cls", ESTIMATORS, ids=lambda cls: cls.__name__)
@given(data=st.data())
@fuzz
def test_fit_works_or_refuses_in_one_line(cls, data):
    estimator = cls(**data.draw(settings_of(cls)))
    how = data.draw(data_of(cls))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fitted = estimator.fit(**how)
        except UserError as error:
            assert_one_line(str(error))
        except (ValueError, TypeError):  # scikit-learn's own, of rows of a kind that it takes nowhere
            assert how["X"] is not ROWS
        else:
            assert fitted is estimator
            use = getattr(fitted, "predict", None) or fitted.transform
            assert use(how["X"]).shape[0] == len(how["X"])
