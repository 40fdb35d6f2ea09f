"""Whatever is given to a constructor, it stands or is refused by a documented error, in one line."""

import dataclasses
import json

import jaxtyping
import pytest
import torch
from fuzzing import FLOORS, assert_one_line, fields_of, fuzz, is_plain, made, settings_classes, types_of
from hypothesis import given
from hypothesis import strategies as st

from toolkit import configs, pretrain_config
from toolkit.configs import from_dict, to_dict
from toolkit.errors import UserError
from toolkit.row_changes import Intervention

CLASSES = [cls for floor in FLOORS for cls in settings_classes(floor)]


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Annotations are checked in tests only: without the check, what a class does itself is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def documented(cls):
    """The errors that a class says it raises."""
    raised = (cls.__doc__ or "").partition("Raises:")[2]
    return (UserError, *[error for error in (ValueError, TypeError) if f"{error.__name__}:" in raised])


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
@given(data=st.data())
@fuzz
def test_a_constructor_stands_or_refuses_in_one_line(cls, data):
    arguments = data.draw(fields_of(cls))
    try:
        found = cls(**arguments)
    except documented(cls) as error:
        assert_one_line(str(error))
        return
    assert type(dataclasses.replace(found)) is cls
    if cls.__dataclass_params__.eq and is_plain(cls):
        assert dataclasses.replace(found) == found


READABLE = [
    cls
    for cls in CLASSES
    if cls.__module__ in (configs.__name__, pretrain_config.__name__)
    and not any(map(dataclasses.is_dataclass, types_of(cls)))
]


@pytest.mark.parametrize("cls", READABLE, ids=lambda cls: cls.__name__)
@given(data=st.data())
@fuzz
def test_what_stands_goes_into_json_and_back(cls, data):
    found = data.draw(made(cls).filter(lambda value: value is not None))
    assert from_dict(cls, json.loads(json.dumps(to_dict(found)))) == found


CHANGES = [cls for cls in CLASSES if issubclass(cls, Intervention)]


@pytest.mark.parametrize("cls", CHANGES, ids=lambda cls: cls.__name__)
@given(data=st.data())
@fuzz
def test_a_change_that_stands_changes_rows_or_says_why_it_does_not_fit(cls, data):
    change = data.draw(made(cls).filter(lambda value: value is not None))
    rows = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    try:
        assert change.apply(rows).shape == rows.shape
    except UserError as error:
        assert_one_line(str(error))
