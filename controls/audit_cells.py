"""The parts of an audit that are computed apart, kept, and put together: a label, a null network, a feature's cause."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controls.audit_json import axis_from, axis_json, outcome_from, outcome_json
from controls.axes import Axis
from controls.axis_causal import Ground
from controls.axis_decodable import PAIRED, Asked, NullScores, beyond_nulls, beyond_token, decode
from controls.budgets import Spending
from controls.case import Case
from controls.directions import covariates
from controls.judging import enough
from controls.outcomes import Outcome
from controls.prepared import Prepared
from controls.registry import find
from controls.steering_curve import Curve
from controls.subject import as_float
from controls.verdict import Evidence
from toolkit.errors import UserError

OF_AXES = ("labels.documents", "labels.within-token", "weights.init", "weights.spectrum", "interventions.steer")
"""Controls that the axes themselves hold."""


class Work:
    """What cells share; made once in each process."""

    def __init__(self, prepared: Prepared, bought: Spending, *, alpha: float, seed: int) -> None:
        self.case, self.subject = prepared.case, prepared.case.subject
        self.bought, self.level, self.seed = bought, alpha / 2, seed

    @cached_property
    def others(self) -> list[list[int]]:
        """Labels held fixed, for each feature."""
        Y, subject = self.subject.table, self.subject
        return [covariates(Y, f, subject.fellows(f)) for f in range(Y.shape[1])]

    @cached_property
    def asked(self) -> Asked:
        """What null networks are asked."""
        return Asked.of_subject(self.subject, self.others, seed=self.seed)

    @cached_property
    def moving(self) -> Case:
        """For controls that run the rest of the network at every draw."""
        return replace(self.case, draws=max(1, self.bought.moves))

    def ground(self, found: Sequence[int]) -> Ground:
        """What causes share."""
        if getattr(self, "_found", None) != tuple(found):
            read_outs = self.case.data.switches(as_float(self.subject.table[:, list(found)]))
            self._ground = Ground.of(self.subject, read_outs, np.array(found, dtype=int), seed=self.seed)
            self._found = tuple(found)
        return self._ground

    def measure(self, cell: Mapping[str, Any]) -> dict[str, Tensor]:
        """One cell."""
        return {"label": self.label, "network": self.network, "cause": self.cause, "control": self.control}[
            cell["stage"]
        ](cell)

    def label(self, cell: Mapping[str, Any]) -> dict[str, Tensor]:
        """D of one feature."""
        f, v = [int(cell["feature"])], self.bought.verdict
        permutations = enough(v, len(self.subject.names), self.level)
        decoded, data = decode(self.subject, permutations=permutations, seed=self.seed, data=self.case.data, features=f)
        token = beyond_token(
            self.subject,
            data,
            decoded,
            permutations=v.token_permutations,
            level=self.level,
            seed=self.seed,
            features=f,
        )
        return {
            "r": decoded.r,
            "error": decoded.error,
            "documents": decoded.documents,
            "token": packed(axis_json(token[0]) if token else None),
        }

    def network(self, cell: Mapping[str, Any]) -> dict[str, Tensor]:
        """All labels in one null network, or in the trained one."""
        if cell["kind"] == TRAINED_ONE:
            scored = self.asked.scored(self.subject.activations[self.asked.rows])
        else:
            scored = self.asked.null(self.subject, cell["kind"], int(cell["number"]), seed=self.seed)
        return {"r": scored.r, "sums": scored.sums}

    def cause(self, cell: Mapping[str, Any]) -> dict[str, Tensor]:
        """C of one feature."""
        axis, curve = self.ground(cell["found"]).axis_and_curve(
            int(cell["feature"]), level=self.level, effort=self.bought.verdict.effort
        )
        return {"axis": packed(axis_json(axis)), "curve": packed(asdict(curve) if curve else None)}

    def control(self, cell: Mapping[str, Any]) -> dict[str, Tensor]:
        """A further control on all features; one that cannot be asked here says why."""
        case = self.moving if cell["name"].startswith(MOVING) else self.case
        try:
            return {"outcomes": packed([outcome_json(one) for one in find(cell["name"]).run(case)])}
        except UNASKED as error:  # a control that fails takes nothing else with it
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return {"outcomes": packed([]), "why": packed(said)}


MOVING = ("perturbations.", "interventions.")
"""Controls that run the rest of the network at every draw."""
UNASKED = (UserError, ValueError, ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError)
"""What the numbers of one feature may bring a control to."""
TRAINED_ONE = "trained"
"""In place of a kind of null network."""


def packed(value: Any) -> Tensor:
    """JSON as bytes, which safetensors keeps."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def unpacked(tensor: Tensor) -> Any:
    """And back."""
    return json.loads(bytes(tensor.tolist()))


def first_cells(work: Work, controls: Sequence[str]) -> list[dict[str, Any]]:
    """All that need nothing else, the dearest first so that workers end together."""
    kinds, seeds = work.subject.nulls, work.bought.verdict.null_seeds
    networks = [{"stage": "network", "kind": kind, "number": i} for kind in kinds for i in range(seeds)]
    labels = [{"stage": "label", "feature": f} for f in range(len(work.subject.names))]
    further = [{"stage": "control", "name": name} for name in controls]
    return [{"stage": "network", "kind": TRAINED_ONE, "number": 0}, *further, *networks, *labels]


def cause_cells(work: Work, found: Sequence[int]) -> list[dict[str, Any]]:
    """A feature each."""
    return [{"stage": "cause", "feature": f, "found": list(found)} for f in range(len(work.subject.names))]


def found_at_all(work: Work, cells: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Tensor]]) -> list[int]:
    """Features whose labels are in the activations at the level."""
    return [f for f, (_, outcome) in enumerate(_found(work, cells, results)) if outcome.p <= work.level]


def _found(
    work: Work, cells: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Tensor]]
) -> list[tuple[Mapping[str, Tensor], Outcome]]:
    chosen = [result for cell, result in zip(cells, results, strict=True) if cell["stage"] == "label"]
    return [
        (one, Outcome("labels.documents", name, "held-out r", float(one["r"]), one["documents"][:, 0].numpy()))
        for name, one in zip(work.subject.names, chosen, strict=True)
    ]


def trained_axes(work: Work, cells: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Tensor]]) -> list[Axis]:
    """W of every feature."""
    by_kind: dict[str, list[Mapping[str, Tensor]]] = {}
    for cell, result in zip(cells, results, strict=True):
        if cell["stage"] == "network":
            by_kind.setdefault(cell["kind"], []).append(result)
    (trained,) = by_kind.pop(TRAINED_ONE)
    r = {kind: torch.stack([one["r"] for one in some]) for kind, some in by_kind.items()}
    sums = {kind: [one["sums"] for one in some[:PAIRED]] for kind, some in by_kind.items()}
    return beyond_nulls(
        NullScores(trained["r"], trained["sums"], r, sums), work.subject.names, level=work.level, seed=work.seed
    )


def evidence(
    work: Work,
    cells: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Tensor]],
    causes: Sequence[Mapping[str, Tensor]],
) -> list[Evidence]:
    """Everything about each feature."""
    further = outcomes(cells, results)
    training = trained_axes(work, cells, results)
    found = []
    for f, ((one, outcome), cause) in enumerate(zip(_found(work, cells, results), causes, strict=True)):
        name, token, curve = work.subject.names[f], unpacked(one["token"]), unpacked(cause["curve"])
        found.append(
            Evidence(
                name,
                float(work.subject.labels[name].mean()),
                float(one["r"]),
                float(one["error"]),
                outcome.p,
                axis_from(token) if token else None,
                training[f],
                axis_from(unpacked(cause["axis"])),
                (outcome, *(o for o in further if o.feature == name)),
                Curve(**{key: tuple(value) for key, value in curve.items()}) if curve else None,
            )
        )
    return found


def outcomes(cells: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Tensor]]) -> list[Outcome]:
    """Of the further controls."""
    return [
        outcome_from(one)
        for cell, result in zip(cells, results, strict=True)
        if cell["stage"] == "control"
        for one in unpacked(result["outcomes"])
    ]


def refusals(cells: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Controls that could not be asked, by reason."""
    why: dict[str, list[str]] = {}
    for cell, result in zip(cells, results, strict=True):
        if cell["stage"] == "control" and "why" in result:
            said = unpacked(result["why"]).removeprefix(cell["name"]).lstrip(": ")
            why.setdefault(said, []).append(cell["name"])
    return [f"not asked: {', '.join(names)}: {said}" for said, names in why.items()]
