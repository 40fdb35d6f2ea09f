"""Null networks: a language model with its weights drawn anew, one kind of structure kept and the rest taken away.

```python
from controls.model_weights import drawn_anew
null = drawn_anew(model, "spectrum", seed=0)  # the same tokenizer, hooks and, matrix by matrix, singular values
```
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls.initialised import initialised
from controls.network_matrices import EMBEDDINGS, READING, WRITING, Matrix, copied, matrices, synchronise
from controls.weights import SIDES, entries_shuffled, gaussian, haar
from toolkit.errors import require, unknown
from toolkit.language import LanguageModel

KINDS = ("init", "gaussian", "shuffled", "cascade", "spectrum")
HEADS = ("attn.q", "attn.k", "attn.v", "attn.o")
"""Parts that fall into heads."""
PRODUCTS = "products"
"""The side of a spectrum draw that keeps the singular values of each head's products."""
FEW_COLUMNS = 2
"""Rows a column from which a Gaussian matrix is so well conditioned (about 6) that Cholesky's QR serves in float32."""


def drawn_anew(
    model: LanguageModel,
    kind: str,
    *,
    seed: int,
    embeddings: bool = True,
    side: str = "both",
    blocks: int | None = None,
    until: str = "",
) -> LanguageModel:
    """A network with a model's architecture, tokenizer and hooks and other weights; the model stays as it is.

    Every kind but `init` and `cascade` keeps layer norms and biases and draws each matrix by itself, by the seed and
    the matrix's name. Queries, keys and values are three matrices; tied embeddings are one and stay tied. Of a model
    whose weights were processed matrices are drawn as they then are: means that were taken away come back, and biases
    keep what was folded into them.

    Args:
        kind: one of KINDS.
            `init`: every weight by the architecture's own initialisation (`controls.initialised`).
            `gaussian`: Gaussian entries with each matrix's own mean and variance.
            `shuffled`: the entries of each matrix in another order.
            `cascade`: the top `blocks` blocks, norms and biases included, as `init` has them at this seed, the rest
                trained, so that more blocks at one seed are the same draw taken further (Adebayo et al. 2018, Sanity
                checks for saliency maps, section 3). Embeddings and the final norm stay.
            `spectrum`: Q₁ Σ Q₂ᵀ, with the singular values of each matrix and Haar-random singular vectors.
        seed: of the draw, at least 0.
        embeddings: draw token and position embeddings and the unembedding too; for gaussian, shuffled and spectrum.
        side: which singular vectors a spectrum draw takes: `both`, `left` (a matrix's outputs) or `right` (its
            inputs), as y = W x; or `products`, for which see `drawn_heads`. All but attention is drawn as for `both`.
        blocks: how many of the top blocks a cascade draws, from 1 to all.
        until: a hook beyond which nothing will be read: what no activation up to it depends on (later blocks, an
            unembedding of its own) stays as it is, which saves its time. Up to the hook the network is the same one
            as without. `init` draws all the same: its draws are one stream, the first ones after the last.

    Raises:
        UserError: an unknown kind, side or hook; an option that is not the kind's; blocks that are not there; weights
            with more than two axes.
    """
    _check(model, kind, seed, embeddings, side, blocks, until)
    if kind == "init":
        return initialised(model, seed=seed)
    which = {"cascade": f" of {blocks} blocks", "spectrum": f" ({side})"}.get(kind, "")
    kept = ("" if embeddings else ", embeddings kept") + (until and f", up to {until}")
    null = copied(model, f"{model.name}, {kind}{which} with seed {seed}{kept}")
    if blocks is not None:
        _put_blocks(null, initialised(model, seed=seed), blocks)
    else:
        for matrix in matrices(null):
            if (embeddings or matrix.part not in EMBEDDINGS) and not _is_after(matrix, until):
                matrix.weight.copy_(_drawn(matrix, kind, seed, side, int(null.bridge.cfg.d_head)))
    synchronise(null)
    return null


def rotated(model: LanguageModel, *, seed: int, shared: bool = True) -> LanguageModel:
    """The model with its residual stream turned by one Haar-random rotation, which changes no output.

    Every matrix that writes to the stream is turned on the left and every one that reads it on the right, biases too.
    A norm that subtracts the mean singles out the all-ones direction, which the rotation then fixes. This is a
    spectrum draw whose singular vectors all move together: what the network computes, it computes still. With
    `shared=False` each matrix is turned by a rotation of its own, and nothing is left of that.

    Raises:
        UserError: a norm has gains or biases of its own, which a rotation would mix; a matrix of an unknown part.
    """
    _check_norms(model)
    null = copied(model, f"{model.name}, {'rotated' if shared else 'each matrix rotated'} with seed {seed}")
    state = null.bridge.state_dict()
    fixed = str(model.bridge.cfg.normalization_type).startswith("LN")
    Q = _rotation(model.d_model, fixed, _generator(seed, "")).to(model.device)
    for matrix in matrices(null):
        if matrix.part not in READING + WRITING:
            raise unknown(f"part of {model.name}", matrix.part, READING + WRITING)
        if not shared:
            Q = _rotation(model.d_model, fixed, _generator(seed, matrix.name)).to(model.device)
        W = matrix.weight.double()
        matrix.weight.copy_(Q @ W if matrix.part in WRITING else W @ Q.T)
        bias = state.get(f"{matrix.name}.bias")
        if matrix.part in WRITING and bias is not None:
            bias.copy_(Q @ bias.double())
    synchronise(null)
    return null


def spun(
    matrix: Float[Tensor, "out in"], *, side: str = "both", generator: np.random.Generator
) -> Float[Tensor, "out in"]:
    """A draw of Q₁ Σ Q₂ᵀ without a singular value decomposition, in float32.

    For a matrix with at least as many rows as columns and its QR decomposition W = QR, the product H₁ R H₂ᵀ of Haar
    matrices H₁ (out, in) and H₂ (in, in) has W's singular values, and its singular vectors are H₁ and H₂ times those
    of R: Haar again, whatever R is. On one side only, the other H stays what it was. (The law is that of
    `controls.weights.spectrum_matched`, at a fraction of the time.)
    """
    rows, columns = matrix.shape
    if rows < columns:
        return spun(matrix.T, side={"left": "right", "right": "left"}.get(side, side), generator=generator).T
    core = matrix.float()
    if side != "right" and rows > columns:
        core = torch.linalg.qr(core, mode="r").R
    if side != "left":
        core = turned(core.T, columns, generator=generator).T
    return core if side == "right" else turned(core, rows, generator=generator)


def turned(
    matrix: Float[Tensor, "columns width"], rows: int, *, generator: np.random.Generator
) -> Float[Tensor, "rows width"]:
    """H times a matrix, H (rows, columns) with Haar-random orthonormal columns, in float32 and never formed.

    H is the Q of a Gaussian matrix G = QR with a positive diagonal of R, as in `controls.weights.haar`. A tall G is
    well conditioned, and R is the Cholesky factor of GᵀG. Else H is a product of reflections at Gaussian vectors of
    falling length, with signs (Stewart 1980, The efficient generation of random orthogonal matrices with an
    application to condition estimators, theorem 3.3): those that a QR decomposition of G would find.

    Raises:
        UserError: more columns than rows.
    """
    columns, width = matrix.shape
    require(columns <= rows, f"{columns} orthonormal columns do not fit into {rows} rows")
    G = torch.from_numpy(generator.standard_normal((rows, columns), dtype=np.float32)).to(matrix.device)
    if rows >= FEW_COLUMNS * columns:
        R = torch.linalg.cholesky(G.T @ G, upper=True)
        return G @ torch.linalg.solve_triangular(R, matrix, upper=True)
    G, first = G.tril(), G.diagonal().clone()
    norm = G.square().sum(0).sqrt()
    head = first + norm.copysign(first)  # of the vector that each reflection turns about
    scales = head.abs() / norm  # 2 / |v|² for v with a head of 1
    below = torch.zeros(rows - columns, width, device=matrix.device)
    signed = torch.cat([-first.sign()[:, None] * matrix, below])
    return torch.ormqr(G / head, scales, signed)


def drawn_heads(
    weight: Float[Tensor, "out in"], part: str, d_head: int, *, generator: np.random.Generator
) -> Float[Tensor, "out in"]:
    """Queries, keys, values or attention's output, redrawn so that each head's products keep their singular values.

    A head attends by W_Qᵀ W_K and moves W_O W_V (Elhage et al. 2021, A mathematical framework for transformer
    circuits). Each factor is redrawn head by head on the side of the residual stream alone: W_Q = LHᵀ with a Haar H
    of its own. So the products become H_Q (L_Qᵀ L_K) H_Kᵀ and H_O (L_Oᵀ L_V) H_Vᵀ: singular values as they were,
    singular vectors Haar. Rotary positions come between the Ls and change nothing of that. Where several query heads
    share a key and value head they still do, and the products of each keep their singular values; so do the factors.
    """
    heads = weight.split(d_head, 1 if part == "attn.o" else 0)
    side = "left" if part == "attn.o" else "right"
    return torch.cat([spun(head, side=side, generator=generator) for head in heads], 1 if part == "attn.o" else 0)


def _drawn(matrix: Matrix, kind: str, seed: int, side: str, d_head: int) -> Tensor:
    if kind in _ENTRYWISE:
        return _ENTRYWISE[kind](matrix.weight, seed=_number(seed, matrix.name))
    generator = _generator(seed, matrix.name)
    if side == PRODUCTS and matrix.part in HEADS:
        return drawn_heads(matrix.weight, matrix.part, d_head, generator=generator)
    return spun(matrix.weight, side="both" if side == PRODUCTS else side, generator=generator)


_ENTRYWISE = {"gaussian": gaussian, "shuffled": entries_shuffled}


def _is_after(matrix: Matrix, until: str) -> bool:
    """Whether no activation up to a hook depends on a matrix; only of hooks inside blocks is that known."""
    if not until.startswith("blocks."):
        return False
    in_block = matrix.name.startswith("blocks.")
    return int(matrix.name.split(".")[1]) > int(until.split(".")[1]) if in_block else matrix.part == "unembed"


def _check(
    model: LanguageModel, kind: str, seed: int, embeddings: bool, side: str, blocks: int | None, until: str
) -> None:
    if kind not in KINDS:
        raise unknown("kind of null network", kind, KINDS)
    if side not in (*SIDES, PRODUCTS):
        raise unknown("side", side, (*SIDES, PRODUCTS))
    require(seed >= 0, f"seed {seed} is negative: expected 0 or more")
    require(side == "both" or kind == "spectrum", f"side {side!r} is for spectrum, not for {kind}: leave it out")
    require(embeddings or kind not in ("init", "cascade"), f"{kind} has no embeddings to choose: leave the option out")
    require(not until or kind != "cascade", f"a cascade begins at the top: leave until={until!r} out")
    if until:
        model.check_hook(until)
    require((blocks is None) == (kind != "cascade"), f"blocks={blocks} for {kind}: a cascade needs it, no other may")
    layers = int(model.bridge.cfg.n_layers)
    require(blocks is None or 1 <= blocks <= layers, f"{blocks} blocks: {model.name} has {layers}, give from 1 to that")


def _put_blocks(null: LanguageModel, drawn: LanguageModel, blocks: int) -> None:
    layers, target = int(null.bridge.cfg.n_layers), null.bridge.state_dict()
    top = tuple(f"blocks.{layer}." for layer in range(layers - blocks, layers))
    for name, weight in drawn.bridge.state_dict().items():
        if name.startswith(top):
            target[name].copy_(weight)


def _check_norms(model: LanguageModel) -> None:
    for name, value in model.bridge.state_dict().items():
        if value.ndim == 1 and "ln" in name.split(".")[-2]:
            wanted = 1.0 if name.endswith("weight") else 0.0
            require(
                bool((value == wanted).all()),
                f"{name} of {model.name} is not {wanted:g} throughout: load the model with fold_layer_norm=True",
            )


def _rotation(d: int, fixes_ones: bool, generator: np.random.Generator) -> Float[Tensor, "d d"]:
    """Haar on the orthogonal matrices of R^d, or on those that leave the all-ones vector where it is."""
    if not fixes_ones:
        return haar(d, d, generator=generator)
    ones = torch.ones(d, 1, dtype=torch.float64) / d**0.5
    rest = torch.linalg.qr(torch.cat([ones, torch.eye(d, dtype=torch.float64)[:, 1:]], 1)).Q[:, 1:]
    return ones @ ones.T + rest @ haar(d - 1, d - 1, generator=generator) @ rest.T


def _number(seed: int, name: str) -> int:
    """A seed for each matrix, by its name: what is drawn of one does not hang on which others are drawn."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0])


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(_number(seed, name))
