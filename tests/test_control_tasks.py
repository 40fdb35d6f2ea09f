"""Control tasks: what is drawn, scores equal to fits one by one, ceilings, intervals that cover, p that is uniform."""

import numpy as np
import pytest
from scipy.stats import kstest
from scipy.stats import t as student
from sklearn.base import clone

from toolkit.control_tasks import control_labels, selectivity
from toolkit.errors import UserError
from toolkit.permutation_null import permutation_null
from toolkit.probe_inputs import blind_folds, probe_rows
from toolkit.probes import LDAProbe, LinearProbe, MeanDifferenceProbe
from toolkit.selectivity_interval import resampled_interval
from toolkit.selectivity_limits import limits
from toolkit.type_ceilings import TypeCeilings, type_ceilings

SQUARED = LinearProbe(loss="squared", l2=0.001)


def memory(*, signal, noise=0.0, documents=30, length=20, kinds=60, classes=2, seed=0):
    """Rows that hold a code of their type, and labels that are a random function of it, or read from a direction."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(documents), length)
    tokens = draw.choice(kinds, len(groups), p=(w := 1 / np.arange(2, kinds + 2)) / w.sum())
    y = draw.integers(0, classes, len(groups) if signal else kinds)
    y = y if signal else y[tokens]
    y = np.where(draw.random(len(y)) < noise, draw.integers(0, classes, len(y)), y)
    X = draw.standard_normal((kinds, 12))[tokens] + draw.standard_normal((len(y), 12))
    X[:, 0] += signal * y
    return X, y, tokens, groups


def test_a_control_task_is_a_function_of_the_type_drawn_from_the_labels():
    draw = np.random.default_rng(0)
    y, tokens = np.array(["a", "b", "c"])[draw.choice(3, 500, p=[0.6, 0.3, 0.1])], draw.integers(0, 20, 500)
    found = control_labels(y, tokens, n=2000, seed=3)
    assert all(len(set(found[tokens == kind, task])) == 1 for kind in range(20) for task in range(5))
    first = np.unique(tokens, return_index=True)[1]
    drawn = found[first]  # a row a type
    for label in "abc":
        # 40,000 draws: four standard errors at most
        assert (drawn == label).mean() == pytest.approx((y == label).mean(), abs=4 * 0.5 / 200)
    shares = np.array([(y == label).mean() for label in "abc"])
    # types are drawn on their own: two agree as often as two draws do
    assert (drawn[0] == drawn[1]).mean() == pytest.approx((shares**2).sum(), abs=4 * 0.5 / 2000**0.5)


def test_control_labels_depend_on_the_seed_only_and_grow_at_the_end():
    y, tokens = np.arange(40) % 3, [f"w{i % 7}" for i in range(40)]
    few = control_labels(y, tokens, n=4, seed=1)
    np.testing.assert_array_equal(few, control_labels(y, tokens, n=9, seed=1)[:, :4])
    assert (few != control_labels(y, tokens, n=4, seed=2)).any()


@pytest.mark.parametrize("probe", [LDAProbe(shrinkage=0.1), MeanDifferenceProbe(), LinearProbe(l2=0.01), SQUARED,
                                   LinearProbe(l2=0.01, class_weight="balanced")], ids=str)  # fmt: skip
@pytest.mark.parametrize("classes", [2, 5])
def test_all_at_once_is_one_by_one_also_where_a_task_lacks_a_class(probe, classes):
    X, y, tokens, groups = memory(signal=1.0, kinds=6, classes=classes)
    found = selectivity(probe, X, y, tokens=tokens, groups=groups, n=6)
    tasks = control_labels(y, tokens, n=6, seed=0)
    assert classes == 2 or min(len(np.unique(task)) for task in tasks.T) < classes
    fold_of = blind_folds(probe_rows(X, y, None, groups), 3, seed=0)
    for column, score in zip([y, *tasks.T], [found.accuracy, *found.control_accuracies], strict=True):
        right = 0
        for fold in range(3):
            away = fold_of == fold
            right += (clone(probe).fit(X[~away], column[~away]).predict(X[away]) == column[away]).sum()
        assert score == pytest.approx(right / len(y))


def test_accuracies_by_type_add_up_and_the_ceilings_bound_a_memory_of_types():
    draw = np.random.default_rng(0)
    groups, tokens = np.repeat(np.arange(20), 30), draw.choice(120, 600, p=(w := 1 / np.arange(1, 121)) / w.sum())
    y, codes = draw.integers(0, 2, 600), np.eye(120)
    found = selectivity(SQUARED, codes[tokens], y, tokens=tokens, groups=groups, n=100)
    assert found.type_accuracies @ found.ceilings.rows / 600 == pytest.approx(found.accuracy)
    assert found.ceilings.by_type @ found.ceilings.rows / 600 == pytest.approx(found.ceilings.label)
    assert found.ceiling == pytest.approx(found.ceilings.seen + (1 - found.ceilings.seen) * found.ceilings.majority)
    assert found.types == len(np.unique(tokens))
    # one-hot rows say nothing but the type, so that a probe of them is at the ceiling; a rotten one is far below
    spread = found.control_accuracies.std() / 10
    assert found.control_accuracy == pytest.approx(found.ceiling, abs=4 * spread + 0.01)
    blind = selectivity(SQUARED, codes[draw.permutation(tokens)], y, tokens=tokens, groups=groups, n=100)
    assert blind.control_accuracy < found.ceiling - 0.1


def test_ceilings_by_hand():
    labels = np.array([0, 0, 1, 1, 0, 1, 1, 0])
    types = np.array([0, 0, 0, 1, 1, 1, 2, 0])
    fold_of = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = type_ceilings(labels, types, np.array(["x", "y", "z"]), fold_of)
    # fold 0 learns from 1: y -> 0 (tie), z -> 1, x -> 0; fold 1 from 0: x -> 0, y -> 1, z is unseen -> 0 (tie)
    np.testing.assert_allclose(found.by_type, [3 / 4, 1 / 3, 0])
    assert found.label == 4 / 8
    assert (found.seen, found.majority, found.agreement, found.control) == (7 / 8, 1 / 2, 1 / 2, 7 / 8 + 1 / 16)


def test_the_interval_is_students_where_only_documents_or_only_tasks_differ():
    draw = np.random.default_rng(0)
    sizes, hits = np.full(25, 40.0), draw.integers(0, 41, 25).astype(float)
    for n in (4, 25):
        low, high = resampled_interval(sizes[:n], hits[:n], np.zeros((n, 25)), confidence=0.9, seed=0)
        by_hand = student.ppf(0.95, n - 1) * (hits[:n] / 40).std(ddof=1) / n**0.5
        # 2,000 resamples give a standard deviation to 1.6%: three of them
        assert (high - low) / 2 == pytest.approx(by_hand, rel=0.05)
        assert (high + low) / 2 == pytest.approx(hits[:n].mean() / 40)
    tasks = np.tile(draw.integers(0, 41, 50), (25, 1)).astype(float)
    low, high = resampled_interval(sizes, np.full(25, 20.0), tasks, confidence=0.9, seed=0)
    by_hand = student.ppf(0.95, 24) * (tasks[0] / 40).std(ddof=1) / 50**0.5 * (25 / 24) ** 0.5
    assert (high - low) / 2 == pytest.approx(by_hand, rel=0.05)
    low, high = resampled_interval(sizes, np.full(25, 20.0), tasks[:, :4], confidence=0.9, seed=0)
    by_hand = student.ppf(0.95, 3) * (tasks[0, :4] / 40).std(ddof=1) / 2 * (25 / 24) ** 0.5
    assert (high - low) / 2 == pytest.approx(by_hand, rel=0.05)


@pytest.mark.parametrize("tasks", [2, 3, 10])
def test_the_interval_covers_with_few_control_tasks(tasks):
    """Stated before looking: of 400 intervals of 95%, at least .92 (three standard errors below) cover 0.

    Documents and tasks both scatter: hits of each document on each task are normal about sums of their effects.
    """
    draw, covered = np.random.default_rng(0), 0
    for seed in range(400):
        by_document, by_task = draw.standard_normal(12), draw.standard_normal(tasks)
        control = 20 + by_document[:, None] + by_task + draw.standard_normal((12, tasks))
        hits = 20 + by_document + draw.standard_normal(12)
        low, high = resampled_interval(np.full(12, 40.0), hits, control, confidence=0.95, seed=seed)
        covered += low <= 0 <= high
    assert covered >= 0.92 * 400
    # the control: where tasks are no sample of anything, as their plain mean takes them, too few cover
    if tasks == 2:
        plain = 0
        for _ in range(400):
            apart = draw.standard_normal(12) - draw.standard_normal(2).mean() - draw.standard_normal((12, 2)).mean(1)
            plain += abs(apart.mean()) <= student.ppf(0.975, 11) * apart.std(ddof=1) / 12**0.5
        assert plain < 0.8 * 400


def ceilings(rows=(50,) * 10, seen=1.0, majority=0.5, agreement=0.5):
    rows = np.array(rows)
    return TypeCeilings(control=seen + (1 - seen) * majority, seen=seen, majority=majority, agreement=agreement,
                        label=1.0, types=np.arange(len(rows)), rows=rows, by_type=np.ones(len(rows)))  # fmt: skip


def judged(sizes=(100.0,) * 6, of=None, interval=(0.1, 0.2), *, redraws=19, grouped=True):
    return limits(np.array(sizes), of or ceilings(), interval, redraws=redraws, confidence=0.95, grouped=grouped)


def test_limits_are_calculations():
    found = judged()
    # 2^-5 <= .05 < 2^-4; .5^5 <= .05 < .5^4; 1/20 <= .05
    assert (found.documents_needed, found.types_needed, found.redraws_needed) == (6, 5, 19)
    assert found.enough
    assert "enough types (10 effective, 5 needed), documents (6, 6) and redraws (19, 19)" in found.statement
    without = judged(of=ceilings(rows=(50,) * 4), redraws=0)
    assert without.enough  # types and redraws are for p
    assert "enough documents (6 effective, 6 needed); without redraws there is no p" in without.statement


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (judged(sizes=(100.0,) * 5), "as good as 5.0 documents of equal size, and 6 are needed"),
        (judged(sizes=(1000.0, *(1.0,) * 50)), "as good as 1.1 documents"),
        (judged(of=ceilings(rows=(50,) * 4)), "as good as 4.0 word types of equal frequency, and 5 are needed"),
        (judged(of=ceilings(agreement=0.98, majority=0.99)), "10.0 word types of equal frequency, and 149 are needed"),
        (judged(sizes=(100.0,) * 5, redraws=0), "as good as 5.0 documents"),
        (judged(redraws=18), "as good as 18.0 control tasks, and 19 are needed for a p of 0.05"),
        (judged(of=ceilings(seen=0.05)), "could add 0.025 to a control task's accuracy (5% of held-out rows"),
    ],
)
def test_too_little_is_said_in_plain_words(found, words):
    assert not found.enough
    assert words in found.statement
    assert "not enough" in found.statement


def test_rows_without_documents_are_said_to_count_as_such():
    X, y, tokens, groups = memory(signal=2.0)
    assert "each row counts as a document" in selectivity(SQUARED, X, y, tokens=tokens, n=19).statement
    found = selectivity(SQUARED, X, y, tokens=tokens, groups=groups, n=19)
    assert "each row counts" not in found.statement
    assert (found.documents, found.enough) == (30, True)
    assert selectivity(SQUARED, X, y, tokens=tokens, groups=groups, n=9).enough is False


def test_a_label_that_is_read_beats_every_control_task_and_a_memory_of_types_does_not():
    X, y, tokens, groups = memory(signal=6.0)
    read = selectivity(MeanDifferenceProbe(), X, y, tokens=tokens, groups=groups, n=39)
    assert read.p == pytest.approx(1 / 40)
    assert read.interval[0] > 0
    X, y, tokens, groups = memory(signal=0.0)
    remembered = selectivity(MeanDifferenceProbe(), X, y, tokens=tokens, groups=groups, n=39)
    assert remembered.p > 0.05
    assert remembered.accuracy > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_p_finds_too_much_neither_for_a_random_function_of_the_type_nor_with_noise(noise):
    """Not uniform but conservative: the tasks' shares scatter about the labels', which are a draw already."""
    found = []
    for seed in range(300):
        X, y, tokens, groups = memory(signal=0.0, noise=noise, seed=seed)
        found.append(selectivity(MeanDifferenceProbe(), X, y, tokens=tokens, groups=groups, n=39, seed=seed).p)
    # p takes the values 1/40 ... 1; the shift to the middle of each step makes it comparable to a continuum
    assert kstest(np.array(found) - 0.5 / 40, "uniform", alternative="greater").pvalue > 0.01
    # the control: as a test of level .1 rejects in a tenth, 300 reject in 46 or more with a chance of .3%
    assert sum(p <= 0.1 for p in found) < 46


@pytest.mark.slow
def test_types_that_exchange_their_labels_make_p_uniform_for_a_function_of_the_type():
    found = {0.0: [], 3.0: []}
    for signal, n in ((0.0, 300), (3.0, 20)):
        for seed in range(n):
            X, y, tokens, groups = memory(signal=signal, seed=seed)
            null = permutation_null(MeanDifferenceProbe(), X, y, scheme="types", tokens=tokens, groups=groups, n=39,
                                    seed=seed)  # fmt: skip
            found[signal].append(null.p)
    assert kstest(np.array(found[0.0]) - 0.5 / 40, "uniform").pvalue > 0.01
    assert np.mean(np.array(found[3.0]) <= 0.05) == 1


def paired(seed, *, documents=40, length=40, pairs=10):
    """Types come in pairs that rows cannot part, beside a bit that is the label, wrong in a tenth of the rows.

    Reading scores .9. On a control task a pair's types have different labels half of the time, and then half of the
    rows are right: 1 - 2 * 1/2 * 1/2 * 1/2 = .75. The bit is wrong more often in some documents than in others.
    """
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(documents), length)
    tokens = draw.integers(0, 2 * pairs, len(groups))
    bit = draw.integers(0, 2, len(groups))
    y = np.where(draw.random(len(groups)) < draw.beta(1, 9, documents)[groups], 1 - bit, bit)
    return np.hstack([np.eye(pairs)[tokens // 2], 2.0 * bit[:, None] - 1]), y, tokens, groups


@pytest.mark.slow
def test_the_interval_covers_a_known_selectivity_of_15_percent():
    """Stated before looking: of 300 intervals of 95%, at least .91 (three standard errors below) cover .15."""
    found = []
    for seed in range(300):
        X, y, tokens, groups = paired(seed)
        found.append(selectivity(SQUARED, X, y, tokens=tokens, groups=groups, n=100, seed=seed))
    assert np.mean([f.value for f in found]) == pytest.approx(0.15, abs=0.005)
    covered = np.mean([f.interval[0] <= 0.15 <= f.interval[1] for f in found])
    assert covered >= 0.91
    # the control: documents taken for rows are too narrow, and .05 lies outside
    assert np.mean([f.interval[0] <= 0.05 <= f.interval[1] for f in found]) < 0.2


def test_what_makes_no_sense_is_refused():
    X, y, tokens, groups = memory(signal=1.0)
    with pytest.raises(UserError, match="n=0: expected a whole number of at least 2"):
        selectivity(SQUARED, X, y, tokens=tokens, groups=groups, n=0)
    with pytest.raises(UserError, match="confidence=95"):
        selectivity(SQUARED, X, y, tokens=tokens, groups=groups, confidence=95)
