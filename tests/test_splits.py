"""Splits by document: no document in two parts, shares as near as any choice of documents comes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import UserError
from toolkit.splits import split_documents

SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=9)


def rows(sizes):
    return np.repeat(np.arange(len(sizes)) * 7 - 3, sizes)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, share=st.floats(0.02, 0.98), seed=st.integers(0, 99))
def test_two_parts_come_as_near_as_any_choice_of_documents(sizes, share, seed):
    groups = rows(sizes)
    first, second = split_documents(groups, (share, 1 - share), seed=seed)
    choices = itertools.chain(*(itertools.combinations(sizes, count) for count in range(1, len(sizes))))
    nearest = min(abs(sum(choice) - share * len(groups)) for choice in choices)
    assert abs(len(first) - share * len(groups)) == pytest.approx(nearest, abs=1e-6)
    assert len(first) * len(second) > 0


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=4, max_size=40), seed=st.integers(0, 99))
def test_parts_share_no_document_and_leave_no_row_out(sizes, seed):
    groups = np.random.default_rng(seed).permutation(rows(sizes))
    parts = split_documents(groups, (0.6, 0.1, 0.2, 0.1), seed=seed)
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
    for one, other in itertools.combinations(parts, 2):
        assert not set(groups[one]) & set(groups[other])


def test_shares_are_met_where_documents_are_small():
    sizes = np.random.default_rng(0).integers(1, 60, 300)
    parts = split_documents(rows(sizes), (0.8, 0.1, 0.1), seed=0)
    assert [len(part) / sizes.sum() for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=1e-3)


def test_every_part_gets_a_document_though_the_sizes_say_otherwise():
    assert [len(part) for part in split_documents(rows([10, 10, 80]), (0.2, 0.2, 0.6), seed=0)] == [10, 10, 80]
    assert [len(part) for part in split_documents(rows([1, 99]), (0.5, 0.5), seed=0)] == [1, 99]
    assert [len(part) for part in split_documents(rows([4]), (1.0,), seed=0)] == [4]


def test_the_seed_decides_which_documents():
    groups = rows([1] * 50)
    splits = [split_documents(groups, (0.2, 0.8), seed=seed)[0].tolist() for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1]
    assert len({tuple(split) for split in splits}) == 3


def test_each_document_is_as_often_in_a_part_as_any_other_of_its_size():
    groups = rows([2] * 10)
    counts = sum(np.bincount(split_documents(groups, (0.3, 0.7), seed=seed)[0], minlength=20) for seed in range(400))
    # 120 expected for each document, with standard deviation 9.2; ten documents within 4 of these.
    assert abs(counts - 120).max() < 37


@pytest.mark.parametrize(
    ("sizes", "shares", "message"),
    [
        ([5], (0.5, 0.5), "cannot split 1 documents into 2 parts"),
        ([], (0.5, 0.5), "cannot split 0 documents"),
        ([1, 2, 3], (0.5, 0.6), "sum 1"),
        ([1, 2, 3], (1.0, 0.0), "above 0"),
        ([1, 2, 3], (), "above 0"),
    ],
)
def test_what_cannot_be_split_is_refused(sizes, shares, message):
    with pytest.raises(UserError, match=message):
        split_documents(rows(sizes).astype(int), shares, seed=0)
