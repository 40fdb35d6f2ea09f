"""The commands audit, run and list: flags, checks and what is printed."""

import os
from argparse import ArgumentParser, Namespace
from typing import Any

from toolkit.errors import UserError, require

CORPUS_OF_UD = "UD_TREEBANK"
"""Environment variable that names the folder or file of .conllu trees behind "ud:" labels."""


def add_to(actions: Any) -> None:
    """The three commands."""
    audit = actions.add_parser(
        "audit", allow_abbrev=False, help="a verdict for each feature of a probe, an SAE or principal directions"
    )
    audit.set_defaults(action=_audit)
    _add_subject(audit)
    audit.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    audit.add_argument("--cluster", default="", metavar="ADDRESS", help="a Dask scheduler, in place of processes")
    audit.add_argument("--quiet", action="store_true", help="no times and no progress bars")
    audit.add_argument("--resume", action="store_true", help="go on with the newest unfinished audit")
    one = actions.add_parser("run", allow_abbrev=False, help="one control by itself")
    one.set_defaults(action=_run)
    one.add_argument("name", metavar="NAME", help="such as weights.spectrum; python -m controls list has all")
    one.add_argument("--draws", type=int, default=0, help="null draws; 0 takes what the budget buys")
    _add_subject(one)
    names = actions.add_parser("list", help="all controls, and the null each tests")
    names.set_defaults(action=_list)


def _add_subject(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="tiny-gpt2", metavar="NAME", help="a model by name or folder")
    add("--hook", default="", metavar="NAME", help="such as blocks.6.hook_resid_post")
    add("--corpus", default="", metavar="SOURCE", help=f"a file, a folder or nltk:NAME (ud: labels: {CORPUS_OF_UD})")
    add("--labels", action="append", default=[], metavar="LAYER=VALUE", help="such as ud:upos=VERB; with commas, many")
    add("--sae", default="", metavar="SOURCE", help="an SAE: a folder in sae-lens's format, or release:id")
    add("--latents", default="", metavar="RANGE", help="such as 0:200 or 3,8,12; without it ten that are on often")
    add("--pca", type=int, default=0, metavar="N", help="the first principal directions")
    add("--budget", default="standard", metavar="NAME", help="quick, standard or thorough")
    add("--alpha", type=float, default=0.05, help="error rate asked for")
    add("--seed", type=int, default=0, help="every draw follows from it")
    add("--out", default="runs", metavar="FOLDER", help="folder of the runs")


def _job(chosen: Namespace) -> Any:
    from controls.audit_run import Job
    from controls.finders import Labels

    labels = Labels.of(*chosen.labels).names if chosen.labels else ()
    corpus = corpus_of(labels, chosen.corpus)
    names = tuple("=".join(split(label)[1:]) if "=" in label else label for label in labels)
    return Job(
        model=chosen.model,
        hook=chosen.hook,
        corpus=corpus,
        labels=names,
        sae=chosen.sae,
        latents=chosen.latents,
        pca=chosen.pca,
        budget=chosen.budget,
        alpha=chosen.alpha,
        seed=chosen.seed,
    )


def split(label: str) -> tuple[str, str, str]:
    """Scheme ("ud", "nltk:NAME" or none), layer and value of a label; without "=" all of it is the layer."""
    head, _, value = label.partition("=")
    scheme, _, layer = head.rpartition(":")
    return (scheme, layer, value) if "=" in label else ("", label, "")


def corpus_of(labels: tuple[str, ...], given: str) -> str:
    """Text by --corpus or by the labels: "nltk:NAME:LAYER=VALUE" says it, "ud:" means the treebank of UD_TREEBANK.

    Raises:
        UserError: nothing is known of it, or there are two corpora.
    """
    schemes = {split(label)[0] for label in labels} - {""}
    require(len(schemes) < 2, f"labels are of several corpora, {', '.join(sorted(schemes))}: audit them apart")
    (scheme,) = schemes or {""}
    if scheme in ("", "ud") and given:
        return given
    require(not given or given == scheme, f"--corpus {given} and labels of {scheme}: leave one of them out")
    if scheme != "ud":
        return scheme
    if not os.environ.get(CORPUS_OF_UD):
        raise UserError(
            "labels ud:... come from a Universal Dependencies treebank: give --corpus FOLDER of .conllu files, or set "
            + CORPUS_OF_UD
        )
    return os.environ[CORPUS_OF_UD]


def _audit(chosen: Namespace) -> int:
    from controls.audit_run import run

    require(chosen.workers >= 1, f"--workers must be at least 1, got {chosen.workers}")
    job = _job(chosen)
    how = {name: getattr(chosen, name) for name in ("out", "workers", "cluster", "resume", "quiet")}
    done = run(job, **how)
    print(f"\n{done.found}")
    print(", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in done.found.seconds.items()))
    print(f"{done.folder}; look at {done.page}", flush=True)
    return 0


def _run(chosen: Namespace) -> int:
    from controls.one_control import run

    done = run(_job(chosen), chosen.name, draws=chosen.draws, out=chosen.out)
    print(done.table)
    print(f"{done.seconds:.0f} s; {done.folder}", flush=True)
    return 0


def _list(chosen: Namespace) -> int:
    from controls.registry import controls

    for name, one in controls().items():
        print(f"{name:28} {one.null}" + (f"\n{'':28} mind: {one.mind}" if one.mind else ""))
    return 0
