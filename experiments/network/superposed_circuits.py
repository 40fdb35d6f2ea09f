"""N10: T small networks share a large one, k are called at once: how does the error grow? A toy, without a model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from experiments.network.superposed_circuits_report import summarise
from experiments.network.superposed_sizes import Settings
from experiments.registry import Experiment, register
from toolkit.configs import ToyTraining
from toolkit.descent import EVALUATION
from toolkit.superposed_circuits import draw_calls, draw_circuits, draw_codes, embed, relative_error
from toolkit.superposition_error import Sizes
from toolkit.trained_circuits import answers, train_circuits


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Embeddings of every size, then trainings; `over` names the sweep."""
    base = {"circuits": settings.circuits, "large": settings.large, "width": settings.width, "k": 1,
            "copies": settings.copies, "shared": settings.shared}  # fmt: skip
    swept = [base | {"over": over, over: value} for over in ("circuits", "large", "width", "k", "copies")
             for value in getattr(settings, f"over_{over}")]  # fmt: skip
    swept += [base | {"over": "together", "k": settings.together, "circuits": T} for T in settings.over_circuits]
    swept += [base | {"over": f"stored, k={k}", "k": k, "circuits": T}
              for k in (1, settings.together) for T in settings.over_stored]  # fmt: skip
    apart = base | {"over": "apart", "circuits": settings.large // (settings.width * settings.copies)}
    beside = base | {"over": "trained", "large": settings.trained_large, "copies": settings.trained_copies}
    for k in (1, settings.together):
        swept += [apart | {"k": k}, beside | {"over": "frozen", "circuits": settings.trained_circuits[-1], "k": k}]
    trained = [beside | {"circuits": T, "k": k} for k in (1, settings.together) for T in settings.trained_circuits]
    return [*swept, base | {"over": "shared", "shared": True}, *trained]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Error of the circuits called over that of answering their means, for every instance."""
    sizes = Sizes(*(cell[name] for name in ("circuits", "large", "width", "k", "copies")))
    instances = settings.trained_seeds if cell["over"] in ("trained", "frozen") else settings.seeds
    circuits = draw_circuits(instances, sizes.circuits, sizes.width, seed=seed)
    how: Any = {"large": sizes.large, "copies": sizes.copies, "seed": seed, "shared": cell["shared"]}
    embedded = embed(circuits, draw_codes(instances, sizes.circuits, sizes.width, **how))
    calls = draw_calls(instances, settings.rows, sizes.circuits, sizes.width, k=sizes.k, seed=seed, step=EVALUATION)
    stored = cell["over"].startswith("stored")
    found = {"error": relative_error(embedded.stored(calls) if stored else embedded(calls), circuits, calls)}
    if cell["over"] in ("trained", "frozen"):
        training = ToyTraining(toy_steps=settings.steps, toy_batch=128, toy_lr=3e-3)
        how = {"large": sizes.large, "training": training, "seed": seed, "frozen": cell["over"] == "frozen"}
        network = train_circuits(circuits, sizes.k, **how)
        found["trained"] = relative_error(answers(network, calls, sizes.width), circuits, calls)
    return found


SMOKE = Settings(
    circuits=512, large=256, over_circuits=(256, 512, 1024, 4096), over_stored=(64, 128, 256, 512),
    over_large=(192, 512), over_width=(3, 6), over_k=(1, 2, 3, 8), over_copies=(4, 64), rows=2048,
    trained_circuits=(4, 24), trained_large=32, trained_seeds=3, steps=300,
)  # fmt: skip
EXPERIMENT = register(
    Experiment(
        name="circuits-in-superposition",
        row="N10",
        question="T small networks share one large network, k called at once: what does sharing cost, in T, D, m, k?",
        claim="squared error ~ T k m^2 / D^2 where ReLUs are shared and answers read from them: break-down at as many "
        "circuits as parameters allow, not neurons; at far fewer where answers are written back into D numbers",
        source="Bushnaq and Mendel 2024, Circuits in Superposition; Linsefors and Bushnaq 2025, part 2",
        controls=(
            "one circuit called at a time: no collisions among those called",
            "few circuits, laid apart: no superposition, no error",
            "dense codes: every circuit uses every large neuron",
            "one code for all: nothing tells circuits apart",
            "a large network of the same size trained end to end, or all but its inputs' random directions",
        ),
        scales={"smoke": SMOKE, "default": Settings(),
                "paper": Settings(4096, 1024, over_circuits=(1024, 2048, 4096, 8192, 16384, 32768, 65536),
                                  over_stored=(256, 512, 1024, 2048, 4096),
                                  over_large=(512, 768, 1024, 1536, 2048), steps=20_000)},
        seconds={"smoke": 12, "default": 80, "paper": 3_600},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, shared=True),
        group="network",
    )
)  # fmt: skip
