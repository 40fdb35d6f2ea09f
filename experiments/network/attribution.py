"""N8: do integrated gradients name the latents whose ablation the network feels, better than one gradient does?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.network.attribution_parts import active, elsewhere, parts_of, permuted
from experiments.network.attribution_ranks import FEWEST
from experiments.network.attribution_report import summarise
from experiments.network.ground import Ground, ground
from experiments.network.networks import RANDOM, SPECTRUM, TRAINED
from experiments.network.over_layers import block_of, check_networks, own_sae
from experiments.network.subject import Subject
from experiments.registry import Experiment, register
from toolkit.attribution import (
    Parts,
    ablation,
    gradient_times_activation,
    insertion,
    integrated_gradients,
    output_of,
)
from toolkit.errors import require


@dataclass(frozen=True)
class Settings(Subject):
    """What is asked of which network; the metric is the log-probability of the token it finds likeliest."""

    networks: tuple[str, ...] = (TRAINED, RANDOM, SPECTRUM)
    """The first is what claims are about, the others stand beside it, each with an SAE of its own."""
    labels: tuple[str, ...] = ()
    """LAYER=VALUE each, such as upos=NOUN: directions of their probes are the basis, in the place of latents."""
    shuffled: bool = False
    """Deal the integrated gradients of a place anew among its latents: nothing should agree then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_networks(self.networks, claimed="")
        if self.labels:
            require(not self.sae, f"labels={','.join(self.labels)} beside an SAE: the basis is of one or the other")
            require(bool(self.corpus), f"labels={','.join(self.labels)} without --corpus: name a text that has them")
            few = f"labels={','.join(self.labels)}: at least {FEWEST} are needed to be ranked"
            require(len(set(self.labels)) == len(self.labels) >= FEWEST, f"{few}, none twice")

    @property
    def read_with(self) -> tuple[str, ...]:
        """Labels that the text has to have."""
        return self.labels


def cells(settings: Settings) -> list[dict[str, Any]]:
    """A cell a network and hook."""
    return [{"network": kind, "at": at} for kind in settings.networks for at in settings.at]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """For each baseline every active latent's attributions and ablation, or every probe's."""
    subject = own_sae(settings, cell["network"], cell["at"])
    here = ground(subject, cell["at"], kind=cell["network"], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    found = [_measured(here, parts, generator) for parts in parts_of(here, settings.labels)]
    together = {name: torch.stack([each[name] for each in found]) for name in found[0]}
    if settings.shuffled:
        together["integrated"] = together["permuted"]
    return together | {"documents": torch.from_numpy(here.documents), "block": block_of(here.hook)}


def _measured(here: Ground, parts: Parts, generator: torch.Generator) -> dict[str, Tensor]:
    """Numbers (places, most) of each place's active latents, NaN where it has fewer, and (places,) of the rest."""
    tokens = here.clean.argmax(1)
    metric = output_of(here.rest, tokens)
    on = parts.values != 0
    most = int(on.sum(1).max())
    require(
        most >= FEWEST, f"at most {most} latents of the SAE are on at a place, and {FEWEST} are needed to be ranked"
    )
    ways = {
        "integrated": integrated_gradients(metric, parts),
        "gradient": gradient_times_activation(metric, parts),
        "ablation": ablation(metric, parts, on),
        "insertion": insertion(metric, parts, on),
    }
    found = {name: active(way.features, on) for name, way in ways.items()}
    found["size"] = active(parts.moves.abs(), on)
    of_another = integrated_gradients(output_of(here.rest, tokens.roll(-(len(tokens) // 2))), parts)
    found["elsewhere"] = active(elsewhere(of_another.gradient, parts), on)
    found["permuted"] = permuted(found["integrated"], generator)
    found |= {f"rest_{name}": way.rest for name, way in ways.items()}
    whole = ways["integrated"]
    return found | {"change": whole.change, "missing": whole.missing, "steps": whole.steps}


SMOKE = Settings(layers=1, width=256, steps=200, rows=4_000, places=48, networks=(TRAINED,))
EXPERIMENT = register(
    Experiment(
        name="attribution",
        row="N8",
        question="Do integrated gradients over latents say what ablating each latent does, better than one gradient?",
        claim="integrated gradients rank latents as ablation does, better than gradient x activation, most when early",
        source="Sundararajan et al. 2017, section 3; compared with ablation as in attribution patching",
        controls=(
            "attributions dealt anew among a place's latents",
            "the same token's mean gradient at another place",
            "the latent's size alone",
            "networks before training, and with the singular values of each matrix alone",
            "a linear network, where all three agree exactly (in the tests)",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2", rows=12_000),
                "paper": Settings(rows=200_000, width=4096, k=32, steps=5_000, places=512, networks=(TRAINED, RANDOM))},
        seconds={"smoke": 12, "default": 80, "paper": 7_200},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, shuffled=True),
        group="network",
    )
)  # fmt: skip
