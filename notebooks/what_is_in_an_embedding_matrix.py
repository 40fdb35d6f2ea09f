# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What is in an embedding matrix?
#
# A token embedding is a table: one row a token, learned with the rest of the network. Here we open that of `tiny-gpt2`
# (4,096 tokens in 128 dimensions), which ships with the toolkit, and ask of everything that looks like structure:
# **would a matrix that learned nothing show it too?**
#
# Nulls are matrices of the same shape with one kind of structure taken away and another kept (`controls.weights`). The
# choice of null decides what a difference means:
#
# | null | keeps | a difference then means |
# |---|---|---|
# | entries shuffled | the values | the matrix is more than noise |
# | same covariance, Gaussian | mean, principal components, spectrum | more than its principal components say |
# | labels permuted | the very rows | the *names* of the rows matter |

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from controls.weights import covariance_matched, entries_shuffled
from experiments.embedding.word_sets import alike, pairs
from toolkit.circularity import circularity
from toolkit.dictionaries import DictionaryLearner
from toolkit.language import load_embedding
from toolkit.metrics import fvu
from toolkit.pursuit import OMP
from toolkit.spectra import (
    cosines,
    covariance_eigenvalues,
    marchenko_pastur_edge,
    marchenko_pastur_quantiles,
    shared_offset,
)

SEED = 0
embedding = load_embedding()
everything = [embedding.token(i) for i in range(len(embedding.rows))]
print(f"{len(everything):,} rows of {embedding.rows.shape[1]} numbers; a few tokens: {everything[300:2000:170]}")

# %% [markdown]
# ## Rows that nothing was learned about
#
# A vocabulary of byte pairs has a token for each of the 256 bytes, most of which never occur in the training text, and
# pieces that only served to build longer tokens (`ficult`). Their rows have only been pushed away as outputs, all the
# same way, and lie in one heap. A heap is structure, of the least interesting kind: a few atoms serve all of it, and a
# score against a Gaussian can look better for it by as much as for everything else. Look for such rows before anything
# else. From here on we keep tokens that are letters and lie elsewhere.

# %%
unit = torch.nn.functional.normalize(embedding.rows - embedding.rows.mean(0), dim=1)
crowded = cosines(embedding.rows).nearest > 0.98
heap = unit @ torch.nn.functional.normalize(unit[crowded].mean(0), dim=0) > 0.8
is_word = torch.tensor([text.isascii() and text.strip().isalpha() for text in everything])
kept = is_word & ~heap
rows = embedding.rows[kept]
texts = [text for text, is_kept in zip(everything, kept.tolist(), strict=True) if is_kept]
print(f"{int(crowded.sum())} rows have another at a cosine above .98; {int(heap.sum())} lie round their middle")
print("letters among these:", [everything[i] for i in (heap & is_word).nonzero().flatten()[:12].tolist()])
print(f"{len(rows):,} rows are kept")

# %% [markdown]
# ## The spectrum, beside noise
#
# Even pure noise has large and small eigenvalues: with as many rows in 128 dimensions they fill the interval that the
# Marchenko-Pastur law gives. What stands above its upper edge is not noise.

# %%
shuffled, surrogate = entries_shuffled(rows, seed=SEED), covariance_matched(rows, seed=SEED)
edge, expected = marchenko_pastur_edge(*rows.shape), marchenko_pastur_quantiles(*rows.shape)
spectrum, noise = covariance_eigenvalues(rows), covariance_eigenvalues(shuffled)
bar = 1.02 * edge  # a finite matrix passes the edge by a little
above, noise_above = (int((values > bar).sum()) for values in (spectrum, noise))

fig, ax = plt.subplots(figsize=(6, 3.6))
ranks = np.arange(1, len(spectrum) + 1)
ax.loglog(ranks, spectrum, label="embedding")
ax.loglog(ranks, noise, color="C1", label="entries shuffled")
ax.loglog(ranks, expected, "k--", lw=1, label="Marchenko-Pastur")
ax.axhline(edge, color="0.8", zorder=0)
ax.set(xlabel="rank", ylabel="eigenvalue over the mean of all")
ax.legend()
fig.tight_layout()
plt.show()
print(f"above {bar:.2f}, the edge and 2%: {above} eigenvalues, {noise_above} of the shuffled matrix")

# %% [markdown]
# ## Sparse codes, beside a Gaussian of the same covariance
#
# Superposition predicts more than a spectrum: each row should be a sum of *few* directions out of many. So learn a
# dictionary of 512 atoms in 128 dimensions on four fifths of the rows, code the others with few atoms by matching
# pursuit, and see how much is left.
#
# The error falls steeply with the number of atoms, and it is tempting to stop there. But 512 directions learned on
# *any* cloud of points do that. The control is a Gaussian cloud of the same covariance, with a dictionary of its own,
# learned alike. Only what lies between the two curves *can* speak for sparse structure.

# %%
ATOMS, COUNTS = 512, (1, 2, 4, 8, 16)


def learned(matrix):
    """Atoms learned on four fifths of the rows, and the share of the others' variance that COUNTS of them leave."""
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(matrix)))
    held_out, train = order[: len(matrix) // 5], order[len(matrix) // 5 :]
    x = matrix - matrix[train].mean(0)
    how = DictionaryLearner(ATOMS, n_nonzero=8, epochs=6, batch_size=1024, held_out=0, random_state=SEED)
    atoms = how.fit(x[train].numpy()).components_
    left = []
    for count in COUNTS:
        pursuit = OMP(atoms, n_nonzero=count)
        rebuilt = pursuit.inverse_transform(pursuit.transform(x[held_out].numpy()))
        left.append(fvu(x[held_out], torch.from_numpy(rebuilt).float()))
    return atoms, np.array(left)


atoms, error = learned(rows)
null_errors = np.stack([learned(covariance_matched(rows, seed=SEED + i))[1] for i in range(3)])
ratio = error / null_errors.mean(0)

fig, ax = plt.subplots(figsize=(6, 3.6))
ax.plot(COUNTS, error, "o-", label="embedding")
ax.plot(COUNTS, null_errors.T, "s--", color="0.6", ms=4, label=["same covariance, three draws", None, None])
ax.set(xscale="log", xlabel="atoms a row", ylabel="variance unexplained, held-out tokens", ylim=(0, 1))
ax.set_xticks(COUNTS, COUNTS)
ax.minorticks_off()
ax.legend()
fig.tight_layout()
plt.show()
print("embedding over null, by atoms:", dict(zip(COUNTS, ratio.round(2).tolist(), strict=True)))

# %% [markdown]
# The embedding is sparser than its surrogate, and by much less than the first curve alone suggests: most of the error's
# fall is what any cloud with this covariance gives. Do the atoms mean anything? Look at the tokens that lie furthest
# along some of them. (Reading such lists is where most people fool themselves. It is a place to get ideas, not
# evidence.)

# %%
along = (rows - rows.mean(0)) @ torch.from_numpy(atoms).float().T  # (tokens, atoms)
furthest = along.max(0).values.argsort(descending=True)[:8]
for atom in furthest.tolist():
    print(f"atom {atom:3d}:", "  ".join(repr(texts[i]) for i in along[:, atom].topk(7).indices.tolist()))

# %% [markdown]
# ## Near neighbours
#
# Each token's nearest neighbour, by the cosine about the mean row, is nearer than in the surrogate. And a word lies
# nearer to ` word` (the same word after a space) than to other words after a space: the null deals the second halves of
# the pairs anew, so that it keeps what all tokens with a space have in common. How much of the differences one offset
# explains is printed beside it; that is what all such pairs share, and says nothing of single words.

# %%
near, near_surrogate = cosines(rows).nearest, cosines(surrogate).nearest
found = pairs(texts, "space")
spaced, plain = (rows[torch.tensor(side)] for side in zip(*found, strict=True))
generator = np.random.default_rng(SEED)
gap = (plain - spaced).square().sum(1).mean()
gaps = [(plain[generator.permutation(len(plain))] - spaced).square().sum(1).mean() for _ in range(199)]
share = shared_offset(plain - spaced, folds=5, seed=SEED)

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4))
bins = np.linspace(0, 1, 51)
left.hist(near_surrogate, bins, color="0.7", label="same covariance")
left.hist(near, bins, alpha=0.7, label="embedding")
left.set(xlabel="cosine with the nearest other token", ylabel="tokens")
left.legend()
right.hist(gaps, 20, color="0.7", label="pairs dealt anew")
right.axvline(gap, color="C3", lw=2, label="'word' and ' word'")
right.set(xlabel="mean squared distance in a pair", ylabel="draws of the null")
right.legend(loc="upper center")
fig.tight_layout()
plt.show()
print(f"{len(found)} pairs; one offset explains {share.mean():.0%} of their differences")
for word in (" king", " good", " three", "ing"):
    if word in texts:
        own = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
        others = (own @ own[texts.index(word)]).topk(6).indices.tolist()[1:]
        print(
            f"{word!r}:", "  ".join(repr(texts[i]) for i in (own @ own[texts.index(word)]).topk(6).indices.tolist()[1:])
        )

# %% [markdown]
# ## A circle of numbers?
#
# Days and months were found to lie in circles in larger models. This vocabulary has neither whole, but it has number
# words and digits. Each set is drawn in the plane of its two leading principal components. Any ten points have such a
# plane, and it is *chosen* to spread them, so that some order is always to be seen. Hence two nulls: the same points
# with their names permuted, and random sets of words, each in a plane of its own.
#
# An order round the plane is not yet a circle: points along an arc have one too. `closing` tells the two apart. It is
# the distance from the last point back to the first, in steps: 1 where a circle closes, more where an arc stays open.

# %%
DRAWS = 9_999
words = [f" {word}" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")]
sets = {"number words": [word for word in words if word in everything], "digits": [f" {digit}" for digit in range(10)]}
circles = {}
for name, members in sets.items():
    which = [everything.index(text) for text in members]
    pool = embedding.rows[alike(everything, which)]
    circles[name] = circularity(embedding.rows[which], pool, draws=DRAWS, seed=SEED)

fig, axes = plt.subplots(len(circles), 2, figsize=(9, 3.6 * len(circles)))
p = {}
for (name, one), (plane, null) in zip(circles.items(), axes, strict=True):
    plane.plot(*one.plane.T, "-", color="0.85", zorder=0)
    for (x, y), label in zip(one.plane, sets[name], strict=True):
        plane.text(x, y, label.strip(), ha="center", va="center")
    plane.set(xticks=[], yticks=[], title=f"{name}: from last to first {one.closing:.1f} steps")
    plane.margins(0.15)
    bins = np.linspace(0, 1, 41)
    null.hist(one.order_random, bins, color="0.8", density=True, label="random words")
    null.hist(one.order_permuted, bins, histtype="step", color="0.3", density=True, label="names permuted")
    null.axvline(one.order, color="C3", lw=2, label="found")
    null.set(xlabel="order round the plane", ylabel="density of the null")
    null.legend(fontsize=8, loc="upper left")
    draws = {"order": (one.order, one.order_permuted), "circle": (one.harmonic, one.harmonic_permuted)}
    p[name] = {what: (1 + (null >= seen - 1e-9).sum()) / (1 + DRAWS) for what, (seen, null) in draws.items()}
fig.tight_layout()
plt.show()
for name, values in p.items():
    print(f"{name}: p, names permuted:", ", ".join(f"{what} {value:.2g}" for what, value in values.items()))

# %% [markdown]
# Their names go with their places round the plane more than permuted names do, and neither closes: the last is several
# steps from the first. A small p of `circle` (the first harmonic) does not say that it does; an arc has one too.
#
# ## What was shown

# %%
assert 50 < crowded.sum() <= heap.sum() < 400, "most bytes never occur"
assert (heap & is_word).sum() < 0.3 * heap.sum(), "and few words are like them"

assert above >= 12, "the embedding stands above the edge of noise"
assert noise_above == 0, "and noise does not"

at = COUNTS.index(8)
assert error[at] < 0.97 * null_errors[:, at].min(), "sparser than a Gaussian of its covariance"
assert null_errors[:, at].max() < 0.6, "though that explains most of it: the trap"

assert near.mean() > near_surrogate.mean() + 0.02
assert gap < 0.95 * min(gaps), "a word with and without its space are near"
assert share.mean() > 0.03

assert p["number words"]["order"] < 0.005
assert p["digits"]["circle"] < 0.005
assert min(one.closing for one in circles.values()) > 2, "arcs, not circles"
