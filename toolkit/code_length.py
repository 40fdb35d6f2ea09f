"""How many bits labels cost once activations are known: the online code of a probe (Voita and Titov 2020, section 3.2).

Sender and receiver know the activations and the alphabet of labels. Labels go over in blocks, each coded by the probe
fitted on all blocks before it, so a regularity counts by how much there is to be saved and how few labels show it.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from toolkit.coding_inputs import as_rows
from toolkit.errors import require, unknown
from toolkit.heads import log_probabilities
from toolkit.probe_base import Probe, check_probe
from toolkit.probe_inputs import ProbeRows, as_array, check_count, probe_rows
from toolkit.probe_settings import check_settings

SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Where blocks end, as shares of the rows (Voita and Titov 2020, section 4)."""


@dataclass(frozen=True, eq=False)
class CodeLength:
    """What a probe's online code takes for labels, and for control labels on the same rows in the same blocks."""

    row_bits: Float[np.ndarray, " rows"]
    """Bits of each row's label, in the order of X; rows of a document are dependent."""
    blocks: Float[np.ndarray, " blocks"]
    """Bits of each block, the first of them by the uniform code."""
    ends: Int[np.ndarray, " blocks"]
    """Rows coded by the end of each block."""
    uniform_bits: float
    """Rows times log2(classes): the code that learns nothing."""
    control_bits: Float[np.ndarray, " k"]
    """Bits of each column of control labels; empty without."""

    @property
    def bits(self) -> float:
        """Bits of all labels."""
        return float(self.blocks.sum())

    @property
    def compression(self) -> float:
        """Uniform bits over bits: 1 where nothing is learned, less where a probe misleads."""
        return self.uniform_bits / self.bits

    def __str__(self) -> str:
        told = f"{self.bits:.0f} bits for {len(self.row_bits)} labels, compression {self.compression:.2f}"
        if not len(self.control_bits):
            return told
        low, high = self.control_bits.min(), self.control_bits.max()
        return f"{told}; control labels {low:.0f} to {high:.0f}, {len(self.control_bits)} columns"


def code_length(
    probe: Probe,
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    controls: Any = None,
    shares: Any = SHARES,
    seed: int = 0,
) -> CodeLength:
    """The online code length of labels, and of columns of control labels, by the same probe.

    Documents come in a random order; a block is the fewest whole documents that reach its share of the rows, and blocks
    that this leaves empty fall away. The first block costs log2(classes) a row. A later row costs -log2 of
    (1 - e) p + e / classes, with e = 1 / (1 + rows before): p is the probability by the probe, fitted on the classes
    seen before, zero for others. So a class never seen can be coded (an escape, as in prediction by partial matching,
    Cleary and Witten 1984), a sure mistake costs at most log2(classes (1 + rows before)) bits, and a block that doubles
    the rows pays under 1.45 bits for it. Every column is coded by fits to its own labels, those of columns
    with the same classes seen made together. The sum of 2^-bits over all labelings is 1 (Kraft).

    Args:
        probe: any probe of `toolkit.probes` without class weights, unfitted; where it has no penalty of its own, one is
            chosen in each block by cross-validation, and the first block is made to hold as many documents as folds.
        X: (rows, d) activations.
        y: (rows,) labels.
        groups: (rows,) documents.
        controls: (rows, k) columns of control labels, among the classes of y.
        shares: where blocks end, rising to 1.
        seed: deals the order of documents.

    Raises:
        UserError: what `toolkit.probe_inputs.probe_rows` refuses; class weights; controls of another length or with
            labels that y has not; shares that do not rise to 1; too few documents for two blocks; l2=0 and a first
            block without more rows than X has columns; what is no probe.
    """
    check_probe(probe)
    check_count(seed, "seed", least=0)
    balanced = getattr(probe, "class_weight", None)
    require(balanced is None, f"class_weight={balanced!r} distorts the probabilities that labels are coded by: drop it")
    data = probe_rows(as_rows(as_array(X), "X"), y, None, groups)
    check_settings(probe, data)
    labels = np.concatenate([data.labels[:, None], _control_columns(controls, data)], 1)  # (rows, 1 + k)
    chosen = getattr(probe, "l2", 0.0) is None
    block_of, ends = _blocks(data, shares, probe.folds if chosen else 1, seed)
    d = data.X.shape[1]
    require(
        getattr(probe, "l2", None) != 0 or int(ends[0]) > d,
        f"l2=0 with {ends[0]} rows in the first block, in {d} dimensions: the fit is not unique; give a penalty l2 > 0",
    )
    bits = np.full(labels.shape, math.log2(len(data.classes)))
    for block in range(1, len(ends)):
        bits[block_of == block] = _coded(probe, data, labels, block_of < block, block_of == block)
    blocks = np.bincount(block_of, bits[:, 0])
    uniform = len(labels) * math.log2(len(data.classes))
    return CodeLength(bits[:, 0], blocks, ends, uniform, bits[:, 1:].sum(0))


def _control_columns(controls: Any, data: ProbeRows) -> Int[np.ndarray, "rows k"]:
    """Each control label's place among the classes."""
    if controls is None:
        return np.empty((len(data.labels), 0), int)
    columns = np.asarray(as_array(controls))
    require(
        columns.ndim == 2 and len(columns) == len(data.labels),
        f"controls have shape {columns.shape}: expected ({len(data.labels)}, k), a column of labels for each control",
    )
    strange = ~np.isin(columns, data.classes)
    if strange.any():
        raise unknown("label in controls", str(columns[strange][0]), [str(c) for c in data.classes])
    return np.searchsorted(data.classes, columns)


def _blocks(
    data: ProbeRows, shares: Any, least: int, seed: int
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " blocks"]]:
    """The block of each row, and the rows in the blocks up to each; at least `least` documents in the first."""
    try:
        ends = np.array(as_array(shares), float)
    except (TypeError, ValueError):
        ends = np.empty(0)
    rising = ends.ndim == 1 and ends.size > 0 and bool((np.diff(ends, prepend=0) > 0).all()) and ends[-1] == 1
    require(rising, f"shares={shares!r}: expected shares of rows rising to 1")
    order = np.random.default_rng([seed, 47]).permutation(np.unique(data.groups))
    sizes = np.bincount(data.groups)[order]
    held = sizes.cumsum()
    cuts = 1 + np.searchsorted(held, ends * held[-1] * (1 - 1e-12))  # documents in the blocks up to each
    cuts = np.unique(np.clip(cuts, least, len(order)))
    require(
        len(cuts) > 1,
        f"{'groups' if data.grouped else 'X'} holds {len(order)} {'documents' if data.grouped else 'different rows'}: "
        f"too few for a first block of {least} and one more",
    )
    place = np.empty(int(data.groups.max()) + 1, int)
    place[order] = np.searchsorted(cuts, np.arange(len(order)), side="right")
    return place[data.groups], held[cuts - 1]


def _coded(
    probe: Probe,
    data: ProbeRows,
    labels: Int[np.ndarray, "rows columns"],
    before: Bool[np.ndarray, " rows"],
    now: Bool[np.ndarray, " rows"],
) -> Float[np.ndarray, "coded columns"]:
    """Bits of the labels of some rows, each column's by the probe fitted to its labels of the rows before."""
    classes, part = len(data.classes), data.subset(before)
    X, past, truth = data.X[now], labels[before], labels[now]
    seen = np.stack([np.bincount(column, minlength=classes) > 0 for column in past.T], 1)  # (classes, columns)
    chances = np.zeros(truth.shape)
    for kinds in np.unique(seen, axis=1).T:
        alike = (seen == kinds[:, None]).all(0)
        chances[:, alike] = _chances(probe, part, past[:, alike], X, truth[:, alike], np.flatnonzero(kinds))
    escape = 1 / (1 + len(past))
    return -np.log2((1 - escape) * chances + escape / classes)


def _chances(
    probe: Probe,
    part: ProbeRows,
    past: Int[np.ndarray, "before columns"],
    X: Float[np.ndarray, "coded d"],
    truth: Int[np.ndarray, "coded columns"],
    known: Int[np.ndarray, " seen"],
) -> Float[np.ndarray, "coded columns"]:
    """Probability of the true labels by probes for the classes known; 0 for others."""
    among = np.isin(truth, known)
    if len(known) == 1:
        return among.astype(float)
    past, places = np.searchsorted(known, past), np.searchsorted(known, np.where(among, truth, known[0]))
    heads = probe.fit_together(replace(part, labels=past[:, 0], classes=part.classes[known]), probe.to_tensor(past))
    with torch.no_grad():
        logs = log_probabilities(heads.logits(probe.to_tensor(X)).double())  # (coded, columns, seen)
        found = logs.gather(2, probe.to_tensor(places)[..., None])[..., 0].exp()
    return np.where(among, as_array(found), 0.0)
