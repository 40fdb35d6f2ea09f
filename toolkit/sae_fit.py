"""The main command: fit sparse autoencoders to toy models, to a real model's embedding or to its activations.

```
python -m toolkit.sae_fit --target tms
python -m toolkit.sae_fit --target embedding --model FOLDER_OR_NAME --architecture topk --k 32 --width 2304
python -m toolkit.sae_fit --target activations --hook blocks.2.hook_resid_post --corpus nltk:movie_reviews
torchrun --nproc-per-node 2 -m toolkit.sae_fit --target activations ...   several GPUs, each its share of every batch
```
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from toolkit import flags
from toolkit.commands import exit_code
from toolkit.configs import PRESETS, TARGETS, ActivationsConfig, EmbeddingConfig, RunConfig, SAEConfig
from toolkit.errors import require, unknown

PROG = "python -m toolkit.sae_fit"
DESCRIPTION = (
    "Fit sparse autoencoders to toy models of superposition, to a language model's embedding or to its activations. "
    "tms also takes --preset; embedding and activations take --model and what follows it. "
    "gpt2-embedding = embedding of gpt2. Under torchrun activations share each batch among GPUs."
)


@dataclass(frozen=True)
class TargetConfig:
    """What to fit."""

    target: Literal["tms", "embedding", "gpt2-embedding", "activations"] | None = None
    """tms: toy models, where the truth is known; embedding, activations: of --model; gpt2-embedding: that of gpt2."""
    preset: Literal["pentagon", "geometry"] = "pentagon"
    """Settings that belong together (tms): pentagon n=5, m=2; geometry n=400, m=30. Other flags change them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (2 after a mistake that one line explains)."""
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _work(given), less="lower them", kept="last checkpoint")


def _work(argv: Sequence[str]) -> int:
    settings = settings_from(argv)
    require(
        settings["what"].target == "activations" or os.environ.get("WORLD_SIZE", "1") == "1",
        f"--target {settings['what'].target} is for one process: start it without torchrun",
    )
    if settings["what"].target == "tms":
        from toolkit.fit_tms import fit
    elif settings["what"].target == "embedding":
        from toolkit.fit_embedding import fit
    else:
        from toolkit.fit_activations import fit
    fit(settings)
    return 0


def settings_from(argv: Sequence[str]) -> dict[str, Any]:
    """Parse the command line into configuration objects, by group.

    Raises:
        UserError: an unknown or missing target, preset, flag or value, or settings that contradict each other.
    """
    what = _what(argv)
    asks_help = "--help" in argv or "-h" in argv
    require(asks_help or what.target is not None, f"--target is missing: give one of {', '.join(TARGETS)}")
    groups = _groups(what)
    # Help without a target shows every flag; embedding and activations share some, so the latter have a page apart.
    own = groups[what.target] if what.target else {**groups["tms"], **groups["embedding"]}
    sae = PRESETS[what.preset].sae if what.target == "tms" else SAEConfig()
    parsed = flags.parse(
        argv,
        {"what": what, **own, "sae": sae, "run": RunConfig()},
        prog=PROG,
        description=DESCRIPTION,
        elsewhere=_elsewhere(groups, own),
        also={} if what.target else groups["activations"],
    )
    return _resolved(parsed, argv)


def _groups(what: TargetConfig) -> dict[str, dict[str, Any]]:
    """Settings that each target takes beside those of the SAE and the run."""
    preset = PRESETS[what.preset]
    return {
        "tms": {"toy": preset.toy, "training": preset.training},
        "embedding": {"embedding": EmbeddingConfig()},
        "gpt2-embedding": {"embedding": EmbeddingConfig(model="gpt2")},
        "activations": {"activations": ActivationsConfig()},
    }


def _elsewhere(groups: dict[str, dict[str, Any]], own: dict[str, Any]) -> dict[str, str]:
    """Flags of other targets, with the targets that take them."""
    mine = {f.name for group in own.values() for f in fields(group)}
    owners: dict[str, list[str]] = {}
    for target, theirs in groups.items():
        for name in {f.name for group in theirs.values() for f in fields(group)} - mine:
            if target != "gpt2-embedding":
                owners.setdefault(name, []).append(f"--target {target}")
    return {flags.flag_of(no + name): " or ".join(found) for name, found in owners.items() for no in ("", "no")}


def _what(argv: Sequence[str]) -> TargetConfig:
    """Target and preset, read before the rest because they decide its defaults."""
    chosen: dict[str, Any] = {}
    for name, valid in (("target", TARGETS), ("preset", tuple(PRESETS))):
        for at, word in enumerate(argv):
            if word == f"--{name}" and at + 1 < len(argv) and not argv[at + 1].startswith("--"):
                chosen[name] = argv[at + 1]
            elif word.startswith(f"--{name}="):
                chosen[name] = word.partition("=")[2]
        if name in chosen and chosen[name] not in valid:
            raise unknown(name, chosen[name], valid)
    return TargetConfig(**chosen)


def _resolved(parsed: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """gpt2-embedding becomes embedding of gpt2."""
    what: TargetConfig = parsed["what"]
    if what.target == "gpt2-embedding":
        model = parsed["embedding"].model
        require(
            model == "gpt2",
            f"--target gpt2-embedding is the embedding of gpt2, got --model {model}: use --target embedding",
        )
        parsed["what"] = replace(what, target="embedding")
    require(
        what.target == "tms" or not any(word.split("=")[0] == "--preset" for word in argv),
        "--preset belongs to --target tms: leave it out or change --target",
    )
    return parsed


if __name__ == "__main__":
    sys.exit(main())
