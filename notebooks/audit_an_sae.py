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
# # Audit an SAE
#
# Train a small sparse autoencoder (SAE) on the activations of `tiny-gpt2`, look at what its latents respond to, splice
# it into the network, and then put some latents on trial. Every number comes with what something that learned nothing
# would score, since each of the usual ones can be good for a bad reason:
#
# * *variance explained*: activations have a few large directions, and any dictionary explains much of them;
# * *contexts that look alike*: a random direction has favourite tokens too;
# * *loss recovered*: what counts is the distance from a poor dictionary, not from zero ablation.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch

from controls.audit import audit
from controls.axis_causal import Effort
from controls.budgets import Spending
from controls.finder_nulls import at_start, like_rows
from controls.finders import Latents
from controls.judging import Budget
from controls.settling import settle
from controls.weights import covariance_matched
from toolkit.activation_report import in_context
from toolkit.activations import harvest
from toolkit.corpora import END, Document
from toolkit.language import load_model
from toolkit.metrics import fvu, l0, least_squares_gain
from toolkit.sae import SAEConfig, fit_sae
from toolkit.splicing import splice_report

SEED = 0
HOOK = "blocks.2.hook_resid_post"
model = load_model()

# %% [markdown]
# ## Text
#
# So that this notebook needs no corpus, the model writes one: 160 documents, sampled at temperature 1. With text of
# your own put `documents = toolkit.corpora.documents("FILE_OR_FOLDER")` here, and do so for anything you want to
# conclude: a model's own samples are the text that it finds easiest.

# %%
DOCUMENTS, LENGTH = 160, 200
begin = model.tokenizer.bos_token_id
torch.manual_seed(SEED)
written = model.bridge.original_model.generate(
    torch.full((DOCUMENTS, 1), begin),
    attention_mask=torch.ones(DOCUMENTS, 1, dtype=torch.long),
    do_sample=True,
    max_new_tokens=LENGTH,
    min_new_tokens=LENGTH,
    pad_token_id=begin,
)
texts = [model.tokenizer.decode(ids[1:], skip_special_tokens=True) for ids in written]
documents = [Document(f"sample {i}", text) for i, text in enumerate(texts)]
print(texts[0][:300])

# %% [markdown]
# ## Activations, and an SAE on them
#
# Documents are split whole: neighbouring tokens have nearly the same activations, and a split by rows would test on
# what it trained on. The SAE has 256 latents for 128 dimensions, eight on at a time. It is trained on rows less their
# mean at unit scale, which is folded back into its biases.

# %%
found = harvest(model, documents, [HOOK])
rows = torch.from_numpy(np.array(found.rows(HOOK))).float()
is_held = np.asarray(found.documents) >= DOCUMENTS * 3 // 4
train, held_out = rows[~is_held], rows[is_held]
CONFIG = SAEConfig(architecture="topk", width=256, k=8, steps=1500, batch=512, lr=2e-3, dead_after=300)


def fitted(x):
    """An SAE on rows less their mean at unit scale, for raw rows."""
    mean = x.mean(0)
    scale = float((x - mean).square().mean().rsqrt())
    return fit_sae((x - mean) * scale, CONFIG, seed=SEED).unscaled(mean, scale)


sae = fitted(train)
latents = sae.encode(held_out[None])[0]
print(f"{len(train):,} rows to train on, {len(held_out):,} held out; L0 {l0(latents):.1f}")

# %% [markdown]
# ## Variance explained, beside three that learned nothing, or the wrong thing
#
# * **An SAE before its first step**: random directions, the same architecture; a scalar brings it to the rows' scale.
# * **Eight principal components**: as many numbers a row, and no choice among directions.
# * **Gaussian rows of the same covariance**, with an SAE of their own, trained alike. This is the one that bites: it
#   shows how much of the score any cloud of this shape gives. Only the distance below it *can* speak for sparse
#   structure; clusters and heavy tails make one too.

# %%
start = at_start(sae, CONFIG.width, seed=SEED)
mean = train.mean(0)
gain = least_squares_gain(train - mean, start((train - mean)[None])[0])


def before(x):
    """Rows rebuilt by the SAE before its first step."""
    return mean + gain * start((x - mean)[None])[0]


components = torch.linalg.svd(train - mean, full_matrices=False).Vh[: int(CONFIG.k)]
cloud = covariance_matched(rows, seed=SEED)
of_cloud = fitted(cloud[~is_held])
unexplained = {
    "SAE": fvu(held_out, sae(held_out[None])[0]),
    "an SAE on Gaussian rows,\non Gaussian rows": fvu(cloud[is_held], of_cloud(cloud[is_held][None])[0]),
    "8 principal components": fvu(held_out, mean + (held_out - mean) @ components.T @ components),
    "SAE before its first step": fvu(held_out, before(held_out)),
}

fig, ax = plt.subplots(figsize=(7, 2.6))
bars = ax.barh(list(unexplained), list(unexplained.values()), color=["C0", "0.6", "0.6", "0.6"])
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.invert_yaxis()
ax.set(xlabel="variance unexplained, held-out documents", xlim=(0, 1.1))
fig.tight_layout()
plt.show()

# %% [markdown]
# ## What latents respond to
#
# The tokens that move a latent most, in their contexts. The lists look meaningful, as such lists do.

# %%
share = (latents > 0).float().mean(0)
often = ((share > 0.02) & (share < 0.3)).nonzero().flatten()
shown = often[torch.from_numpy(np.random.default_rng(SEED).permutation(len(often))[:4])].sort().values.tolist()
where = np.flatnonzero(is_held)
for latent in shown:
    print(f"latent {latent}, on in {share[latent]:.1%} of rows")
    for row in latents[:, latent].topk(4).indices.tolist():
        print("   ", repr(in_context(found, model.tokenizer, int(where[row]))))

# %% [markdown]
# How meaningful is meaningful? Here is a crude measure, the share of a direction's ten top rows that have the commonest
# token among them, and its control: directions drawn from the covariance of the activations. They have favourite tokens
# too, and some of them look monosemantic. The distance between the histograms is what the SAE has beyond such
# directions, its encoder and its TopK included; a single list shows nothing.

# %%
tokens = np.asarray(found.tokens)[is_held]


def favourite(scores):
    """For each column, the share of its ten top rows with the commonest token."""
    top = tokens[scores.topk(10, dim=0).indices.numpy()]  # (10, columns)
    return np.array([np.unique(column, return_counts=True)[1].max() / 10 for column in top.T])


alive = latents[:, (latents > 0).sum(0) >= 10]
drawn = like_rows(train, alive.shape[1], seed=SEED)
of_latents, of_random = favourite(alive), favourite((held_out - mean) @ drawn.T)

fig, ax = plt.subplots(figsize=(6, 3))
bins = np.arange(0.05, 1.15, 0.1)
ax.hist([of_random, of_latents], bins, color=["0.7", "C0"], label=["random directions", "latents"])
ax.set(xlabel="share of the ten top rows with one token", ylabel="directions")
ax.legend()
fig.tight_layout()
plt.show()
print(f"mean {of_latents.mean():.2f}, random directions {of_random.mean():.2f}")

# %% [markdown]
# ## Spliced into the network
#
# Does the network do without what the SAE leaves out? Its reconstruction takes the place of the activations on held-out
# documents, and the next-token loss is measured. Zero and mean ablation are the usual yardsticks. The sharper one is
# the SAE before its first step.

# %%
batches = found.batches(np.unique(np.asarray(found.documents)[is_held]).tolist())
spliced = splice_report(model, batches, HOOK, sae, mean=mean)
untrained = splice_report(model, batches, HOOK, before, mean=mean)
losses = {
    "clean": spliced.clean,
    "SAE": spliced.spliced,
    "SAE before its first step": untrained.spliced,
    "mean ablated": spliced.mean_ablated,
    "zero ablated": spliced.zero_ablated,
}
fig, ax = plt.subplots(figsize=(7, 2.6))
bars = ax.barh(list(losses), list(losses.values()), color=["0.3", "C0", "0.6", "0.6", "0.6"])
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.invert_yaxis()
ax.set(xlabel="cross-entropy, nats a token", xlim=(0, max(losses.values()) * 1.12))
fig.tight_layout()
plt.show()
print(
    f"loss recovered: {spliced.recovered_zero:.0%} of zero ablation's, {spliced.recovered_mean:.0%} of mean ablation's;"
    f" the SAE before its first step: {untrained.recovered_mean:.0%} of mean ablation's"
)

# %% [markdown]
# ## An audit of three latents
#
# The sum of an SAE may be good and a latent of it still say nothing of the model. The audit asks of each latent: is it
# more than the token (D), do networks drawn anew lack it (W), do the outputs move with it (C)? Between the bounds
# (grey) nothing is settled. The budget is a sparing one, on held-out documents.

# %%
chosen = tuple(shown[:3])
small = Spending(1_200, 600, 120, Budget(199, 99, 39, Effort(8, 16, 8, 99, 2)), draws=99, moves=0, dear=0)
with TemporaryDirectory() as folder:
    file = Path(folder) / "held_out.txt"
    file.write_text(f"\n{END}\n".join(text for text in texts[DOCUMENTS * 3 // 4 :] if text.strip()))
    judged = audit(Latents(sae, chosen), model, str(file), hook=HOOK, budget=small, further=[], quiet=True, seed=SEED)
print(judged)

fig, axes = plt.subplots(1, 3, figsize=(11, 2.8), sharey=True)
names = {"token": "D: beyond the token", "training": "W: not in networks drawn anew", "causal": "C: the outputs move"}
for ax, (attribute, title) in zip(axes, names.items(), strict=True):
    for at, one in enumerate(judged):
        axis = getattr(one.evidence, attribute)
        if axis.between is not None:
            ax.axvspan(axis.between.low, axis.between.high, color="0.92", zorder=0)
            ax.plot(axis.interval(), [at, at], color="C0", lw=3)
            ax.plot(axis.effect, at, "o", color="C0")
            ax.annotate(axis.settled, (axis.effect, at), (0, 7), textcoords="offset points", ha="center")
    ax.axvline(0, color="0.8", lw=1)
    ax.set(title=title, ylim=(-0.5, len(chosen) - 0.3), yticks=range(len(chosen)))
axes[0].set_yticklabels([one.evidence.feature for one in judged])
fig.tight_layout()
plt.show()

# %% [markdown]
# Latents of so small a model stand close to its tokens, and networks with random weights show part of them: the verdict
# is often `undecided`, with the axis that is open. What would settle it:

# %%
for one in judged:
    print(f"{one.evidence.feature}: {one.verdict}; {settle(one, rows=judged.rows) or 'settled'}")

# %% [markdown]
# For more, train on real text (`python -m toolkit.sae_fit --target activations`) and audit with a larger budget
# (`python -m controls audit --sae FOLDER --latents 0:20`), which also asks the controls of finders as a whole.
#
# ## What was shown

# %%
score, gaussian, principal, random = unexplained.values()
assert abs(l0(latents) - CONFIG.k) < 0.5
assert score < 0.6 * gaussian, "beyond what a Gaussian cloud of the same covariance gives"
assert score < 0.6 * principal
assert score < 0.5 * random
assert gaussian < 0.8, "the trap: much of the score is the covariance's"

assert of_latents.mean() > of_random.mean() + 0.1
assert of_random.max() >= 0.7, "the trap: some random directions look monosemantic"

assert spliced.clean < spliced.spliced < untrained.spliced, "better than the SAE before its first step, worse than none"
assert spliced.recovered_mean > 0.8

assert [one.evidence.feature for one in judged] == [f"sae:{latent}" for latent in chosen]
assert all(one.evidence.p_found < 0.025 for one in judged)
assert all(settle(one, rows=judged.rows) for one in judged if one.verdict == "undecided")
