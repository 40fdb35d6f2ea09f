"""Static figures of one run, as SVG."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from toolkit import metrics
from toolkit.sae import SAE
from toolkit.toy import TrainedToy

_TRUE, _LEARNED = "#1f4e79", "#d1495b"
_COLUMNS = 4
_SHOWN = 8


def toy_figure(toy: TrainedToy, path: Path) -> None:
    """Feature directions where the hidden space is a plane, else the Gram matrix, for up to eight instances."""
    figure, panels = _grid(min(_SHOWN, len(toy.W)))
    for i, axes in enumerate(panels):
        W = toy.W[i].cpu()
        axes.set_title(f"instance {i}  loss {toy.loss[i]:.4g}", fontsize=9)
        if toy.model.hidden == 2:
            _arrows(axes, W.T, _TRUE, width=0.012)
            _square(axes, 1.2 * max(1.0, W.norm(dim=0).max().item()))
        else:
            _gram(axes, W)
    title = "feature directions" if toy.model.hidden == 2 else "Gram matrices, blue negative, red positive"
    figure.suptitle(f"Toy models: {title} (n={toy.model.features}, m={toy.model.hidden})", fontsize=11)
    figure.savefig(path)


def sae_figure(toy: TrainedToy, sae: SAE, path: Path) -> None:
    """The SAE's directions over the true ones in the plane, else their signed cosines, matched latents first."""
    figure, panels = _grid(min(_SHOWN, len(toy.W)))
    for i, axes in enumerate(panels):
        directions = toy.W[i][:, metrics.represented(toy.W[i])].T.cpu()
        if len(directions) == 0:
            axes.set(title=f"instance {i}  no feature represented", xticks=[], yticks=[])
            continue
        match = metrics.signed_matching(directions, sae.W_dec[i].cpu())
        axes.set_title(f"instance {i}  signed MCC {match.score:.3f}", fontsize=9)
        if toy.model.hidden == 2:
            _arrows(axes, directions / directions.norm(dim=1, keepdim=True), _TRUE, width=0.022)
            _arrows(axes, sae.W_dec[i].cpu() * 1.12, _LEARNED, width=0.008)
            _square(axes, 1.3)
        else:
            _cosines(axes, directions, sae.W_dec[i].cpu(), match)
    what = "true (blue) and SAE (red) directions" if toy.model.hidden == 2 else "cosine of features (rows) and latents"
    figure.suptitle(f"SAE, {sae.config.architecture}: {what}", fontsize=11)
    figure.savefig(path)


def curves_figure(curves: dict[str, Tensor], path: Path) -> None:
    """Training curves, one panel a stage: every instance faint, the median bold; steps are averaged in 200 bins."""
    figure = Figure(figsize=(5 * len(curves), 3.4), layout="constrained")
    for position, (name, history) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), position + 1)
        steps = np.array_split(np.arange(len(history)), min(200, len(history)))
        means = np.stack([history[chunk].mean(0).numpy() for chunk in steps])
        middle = [chunk.mean() for chunk in steps]
        axes.plot(middle, means, color=_TRUE, alpha=0.25, linewidth=0.8)
        axes.plot(middle, np.median(means, axis=1), color=_TRUE, linewidth=1.8, label="median")
        axes.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def density_figure(shares: Tensor, path: Path) -> None:
    """How often each latent is active over the rows, on a logarithmic axis."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    alive = shares[shares > 0].numpy()
    if len(alive):
        axes.hist(np.log10(alive), bins=50, color=_TRUE)
    axes.set(title="activation density of latents", xlabel="log10 share of tokens", ylabel="latents")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.7 * rows + 0.5), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _arrows(axes: Axes, directions: Tensor, colour: str, *, width: float) -> None:
    ends = directions.numpy()
    start = np.zeros(len(ends))
    axes.quiver(start, start, ends[:, 0], ends[:, 1], color=colour, angles="xy", scale_units="xy", scale=1, width=width)


def _square(axes: Axes, limit: float) -> None:
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])


def _gram(axes: Axes, W: Tensor) -> None:
    axes.imshow(metrics.gram(W).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _cosines(axes: Axes, directions: Tensor, decoder: Tensor, match: metrics.Matching) -> None:
    unit = directions / directions.norm(dim=1, keepdim=True)
    matched = match.latents[match.latents >= 0]
    rest = [j for j in range(len(decoder)) if j not in set(matched.tolist())]
    order = [*matched.tolist(), *rest]
    axes.imshow(
        (unit @ decoder[order].T).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest", aspect="auto"
    )
    axes.set(xticks=[], yticks=[])
