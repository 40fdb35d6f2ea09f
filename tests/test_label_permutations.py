"""What each way of dealing labels anew keeps, and that it changes the rest."""

import jaxtyping
import numpy as np
import pytest

from toolkit.errors import UserError
from toolkit.label_permutations import permuted_rows

DRAW = np.random.default_rng(0)
DOCUMENTS = np.repeat(np.arange(8), [5, 9, 3, 7, 6, 4, 8, 2])
TOKENS = DRAW.integers(0, 6, len(DOCUMENTS))
Y = DRAW.integers(0, 3, len(DOCUMENTS))
SCHEMES = ("iid", "documents", "tokens", "shift")


def dealt(scheme, y=Y, n=200, **changed):
    given = {"groups": DOCUMENTS, "tokens": TOKENS, "n": n, "seed": 0, **changed}
    return permuted_rows(y, scheme=scheme, **given)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_label_is_dealt_once_and_they_do_change_place(scheme):
    rows = dealt(scheme)
    np.testing.assert_array_equal(np.sort(rows, 0), np.tile(np.arange(len(Y))[:, None], (1, 200)))
    assert (Y[rows] != Y[:, None]).mean() > 0.3
    np.testing.assert_array_equal(rows, dealt(scheme))
    assert (rows != dealt(scheme, seed=1)).any()


def test_labels_stay_with_their_token_and_nothing_else_does():
    assert (TOKENS[dealt("tokens")] == TOKENS[:, None]).all()
    assert (TOKENS[dealt("iid")] != TOKENS[:, None]).any()


def test_types_exchange_their_commonest_labels():
    labels = Y[dealt("types")]
    often = np.sort([np.bincount(Y[kind == TOKENS]).argmax() for kind in range(6)])
    first = labels[[np.flatnonzero(kind == TOKENS)[0] for kind in range(6)]]
    assert (labels == first[TOKENS]).all()
    assert (np.sort(first, 0) == often[:, None]).all()
    assert len(np.unique(first, axis=1).T) > 3
    with pytest.raises(UserError, match="there is one token"):
        dealt("types", tokens=np.zeros(len(Y)))


def test_a_shift_keeps_each_document_its_labels_and_their_neighbours():
    rows = dealt("shift")
    assert (DOCUMENTS[rows] == DOCUMENTS[:, None]).all()
    for document in range(8):
        here = np.flatnonzero(document == DOCUMENTS)
        steps = (rows[np.roll(here, -1)] - rows[here]) % len(here)
        assert (steps == 1).all()
    offsets = (rows[5] - 5) % 9  # of the document of nine rows, rows 5 to 13
    assert set(offsets) == set(range(9))


@pytest.mark.parametrize(("length", "found"), [(5, False), (None, True)])
def test_documents_that_mix_labels_are_exchanged_exactly_where_their_lengths_are_one(length, found):
    """What the docstring says of places: a label of the first place stays one only where lengths are alike."""
    lengths = np.full(8, length) if length else np.array([5, 9, 3, 7, 6, 4, 8, 2])
    groups = np.repeat(np.arange(8), lengths)
    first = np.diff(groups, prepend=-1) > 0
    labels = first[permuted_rows(first, scheme="documents", groups=groups, n=50, seed=0)]
    assert (labels != first[:, None]).any() == found
    places = np.concatenate([np.arange(n) for n in lengths])
    kept = first[permuted_rows(first, scheme="tokens", tokens=places, n=50, seed=0)]
    assert (kept == first[:, None]).all()


def test_documents_in_another_order_keep_their_runs():
    rows = dealt("documents")
    assert ((rows[1:] - rows[:-1] == 1).sum(0) >= len(Y) - 8).all()


def test_documents_with_one_label_each_exchange_it():
    y = np.array([0, 1, 0, 0, 1, 1, 0, 1])[DOCUMENTS]
    labels = y[dealt("documents", y)]
    assert all((labels[d == DOCUMENTS] == labels[d == DOCUMENTS][0]).all() for d in range(8))
    by_document = labels[np.flatnonzero(np.r_[True, np.diff(DOCUMENTS) > 0])]
    assert (by_document.sum(0) == 4).all()


def test_documents_need_not_lie_together():
    order = np.random.default_rng(3).permutation(len(Y))
    rows = permuted_rows(Y[order], scheme="shift", groups=DOCUMENTS[order], n=50, seed=0)
    assert (DOCUMENTS[order][rows] == DOCUMENTS[order][:, None]).all()
    np.testing.assert_array_equal(np.sort(rows, 0)[:, 0], np.arange(len(Y)))


def test_each_arrangement_within_tokens_is_as_likely_as_any():
    tokens, y = np.array([0, 0, 0, 1]), np.arange(4)
    rows = permuted_rows(y, scheme="tokens", tokens=tokens, n=6000, seed=0)
    counts = np.unique(rows[:3], axis=1, return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 1000).max() < 150


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dealt("idd"), "unknown scheme 'idd': did you mean 'iid'"),
        (lambda: dealt("shift", groups=None), "scheme='shift' needs groups"),
        (lambda: dealt("tokens", tokens=None), "scheme='tokens' needs tokens"),
        (lambda: dealt("tokens", tokens=TOKENS[:5]), "tokens has shape"),
        (lambda: dealt("tokens", tokens=np.arange(len(Y))), "no label could change place"),
        (lambda: dealt("documents", groups=np.zeros(len(Y))), "there is one document"),
        (lambda: dealt("iid", n=0), "n=0"),
        (lambda: dealt("iid", n=2.5), "n=2.5"),
        (lambda: dealt("iid", seed=None), "seed=None"),
        (lambda: dealt("iid", seed=-1), "seed=-1"),
        (lambda: dealt(None), "unknown scheme 'None'"),
        (lambda: dealt("tokens", tokens=[None, *TOKENS[1:]]), "tokens lacks a token for row 0"),
        (lambda: dealt("types", tokens=[*TOKENS[:-1], np.nan]), f"tokens lacks a token for row {len(Y) - 1}"),
        (lambda: dealt("shift", groups=["a", None, *DOCUMENTS[2:]]), "groups lacks a group for row 1"),
        (lambda: dealt("types", y=np.where(np.arange(len(Y)) == 3, np.nan, Y)), "y lacks a label for row 3"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
