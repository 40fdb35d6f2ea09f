"""The pretraining command's job: corpora to a model's folder."""

import copy
import math
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from toolkit.configs import to_dict
from toolkit.devices import progress_bar, resolve
from toolkit.errors import DivergenceError, UserError, require
from toolkit.logbook import logbook
from toolkit.pretrain_card import card
from toolkit.pretrain_config import PretrainConfig, PretrainRun, log_grid, spread
from toolkit.pretrain_data import TokenData, read_tokens, tokenizer_from, total_steps
from toolkit.pretrain_folder import ModelFolder, load_start, open_folder, refuse_existing, unfinished
from toolkit.pretraining import Pretrained, pretrain, randomise_rows, validation_loss
from toolkit.processes import anywhere, joined_processes, rank, world
from toolkit.runs import commit, versions, writing
from toolkit.token_baselines import baselines

_SIZES = {
    "layers": "n_layer",
    "width": "n_embd",
    "heads": "n_head",
    "context": "n_positions",
    "vocabulary": "vocab_size",
}


def work(config: PretrainConfig, run: PretrainRun) -> Path | None:
    """Train, write the folder, and print what came of it; the folder's path in the first process, else None.

    Raises:
        UserError: whatever the user can mend; an unfinished folder is kept for --resume.
    """
    device = resolve(run.device)
    with joined_processes(device):
        done = Path(run.out)
        refuse_existing(done, resume=run.resume)
        began, resumed = time.monotonic(), unfinished(done).exists()
        model, tokenizer = load_start(run.start) if run.start else (None, _tokenizer_kept(done, config))
        config = config if model is None else sized(config, model)
        data = read_tokens(run.corpus, config, seed=run.seed, tokenizer=tokenizer)
        _check_alike(data)
        if run.randomise_rows:
            model = randomise_rows(model, run.randomise_rows, seed=run.seed)
        if rank() > 0:
            _train(config, run, data, model, device, None)
            return None
        steps = total_steps(data.train, config)
        whole = spread(log_grid(steps, config.checkpoints), run.keep_models)[:-1]
        folder = open_folder(done, _settings(config, run, data), whole)
        with writing(folder.path):
            _keep_tokenizer(data.tokenizer, folder.path)
            try:
                trained, rounded = _train(config, run, data, model, device, folder)
            except UserError as error:
                if not (resumed or folder.checkpoint.path.exists() or isinstance(error, DivergenceError)):
                    folder.drop()  # nothing was begun that --resume could go on with
                raise
            record = training_record(config, run, data, trained, rounded, device, time.monotonic() - began, resumed)
            path = folder.finish(trained.model, record, card(record))
        _report(path, record)
        return path


def _check_alike(data: TokenData) -> None:
    """Every process must have made the tokens that the first one made."""
    if dist.is_initialized():
        mine = torch.tensor([int(data.fingerprint[:15], 16)])
        first = mine.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.broadcast(first, src=0)
        apart = anywhere(first != mine.to(first.device))  # all of them say so, and the first is heard
        require(not bool(apart), "the processes read different text: give all of them the same corpora")


def sized(config: PretrainConfig, model: Any) -> PretrainConfig:
    """The settings with the sizes of the model to go on from.

    Raises:
        UserError: a size that was asked for is not the model's.
    """
    found = {name: getattr(model.config, key) for name, key in _SIZES.items()}
    usual = PretrainConfig()
    for name, value in found.items():
        asked = getattr(config, name)
        require(
            asked in (value, getattr(usual, name)),
            f"--{name} {asked} differs from the model to go on from, whose {name} is {value}: leave it out",
        )
    return replace(config, **found)


def training_record(
    config: PretrainConfig,
    run: PretrainRun,
    data: TokenData,
    trained: Pretrained,
    rounded: float,
    device: str,
    seconds: float,
    resumed: bool,
) -> dict[str, Any]:
    """What training.json holds; `rounded` is the loss of the float16 weights, `seconds` are those since --resume."""
    simple = baselines(data.train, data.validation, config.vocabulary)
    licences = run.licences or ("not stated",) * len(run.corpus)
    return {
        "name": Path(run.out).name,
        "config": to_dict(config),
        "seed": run.seed,
        "start": {
            "from": _named(run.start),
            "norms_from": _named(run.norms_from),
            "randomised_rows": list(run.randomise_rows),
            "train": run.train,
        },
        "corpora": [
            {"name": _named(name), "licence": licence} for name, licence in zip(run.corpus, licences, strict=True)
        ],
        "documents": {"all": data.documents, "held_out": len(data.held_out), "names_held_out": list(data.held_out)},
        "tokens": {"train": len(data.train), "validation": len(data.validation), "fingerprint": data.fingerprint},
        "steps": trained.steps,
        "epochs": trained.steps * config.batch * config.context / len(data.train),
        "validation": {"steps": list(trained.validation), "nats": list(trained.validation.values())},
        "final": {"nats": trained.final, "nats_as_float16": rounded, "perplexity": math.exp(trained.final)},
        "baselines": asdict(simple),
        "train_loss": [round(loss, 4) for loss in trained.losses.tolist()],
        "hardware": {
            "device": device,
            "name": _hardware(device),
            "processes": world(),
            "threads": torch.get_num_threads(),
        },
        "seconds": round(seconds, 1),
        "resumed": resumed,
        "versions": {**versions(), **{name: __import__(name).__version__ for name in ("transformers", "tokenizers")}},
        **commit(),
    }


def _train(
    config: PretrainConfig, run: PretrainRun, data: TokenData, model: Any, device: str, folder: ModelFolder | None
) -> tuple[Pretrained, float]:
    """Train, and measure the model a second time with its weights rounded as the folder keeps them."""
    norms = load_start(run.norms_from)[0].get_input_embeddings().weight.detach().norm(dim=1) if run.norms_from else None
    quiet = run.quiet or folder is None
    log, path = (run.log, folder.path) if folder else ("none", Path(run.out))
    with (
        logbook(log, path, name=Path(run.out).name, config=_settings(config, run, data)) as watch,
        progress_bar(total_steps(data.train, config), "pretraining", quiet) as progress,
    ):
        trained = pretrain(
            data, config, seed=run.seed, device=device, model=model, norms=norms, progress=progress,
            only_rows=run.randomise_rows if run.train == "rows" else None,
            checkpoint=ModelFolder(Path(run.out), ()).checkpoint, keep=folder.keep if folder else None, watch=watch,
        )  # fmt: skip
    rounded = copy.deepcopy(trained.model).half().float().to(device)
    return trained, validation_loss(rounded, data.validation, context=config.context, device=device)


def _keep_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Written beside and moved in, tokenizer.json last: what is resumed reads all of it or none."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tokenizer-") as beside:
        tokenizer.save_pretrained(beside)
        for file in sorted(Path(beside).iterdir(), key=lambda file: file.name == "tokenizer.json"):
            file.replace(folder / file.name)


def _tokenizer_kept(done: Path, config: PretrainConfig) -> Any | None:
    """The tokenizer of the training that is to be resumed."""
    kept = unfinished(done) / "tokenizer.json"
    return tokenizer_from(kept, config.context) if kept.is_file() else None


def _settings(config: PretrainConfig, run: PretrainRun, data: TokenData) -> dict[str, Any]:
    """Everything that decides the numbers; a resumed training must have the same."""
    left_out = ("out", "resume", "quiet", "device", "log")
    kept = {name: value for name, value in to_dict(run).items() if name not in left_out}
    return {"model": to_dict(config), "run": kept, "text": data.fingerprint, "processes": world()}


def _named(source: str) -> str:
    """A corpus or model by name: of a path its last part."""
    return source if source.startswith(("nltk:", "hf:")) else Path(source).name


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def _report(path: Path, record: dict[str, Any]) -> None:
    final, simple = record["final"], record["baselines"]
    print(f"{path}: {record['steps']} steps, {record['epochs']:.2f} epochs, {record['seconds']:.0f} s")
    print(f"validation loss {final['nats']:.4f} nats a token ({final['nats_as_float16']:.4f} as stored, float16)")
    print(f"unigram {simple['unigram']:.4f}, bigram {simple['bigram']:.4f}")
