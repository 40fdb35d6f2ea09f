"""A pretrained model's card, from the record of its training."""

from typing import Any


def card(record: dict[str, Any]) -> str:
    """The text of the model's README.md, from what training.json holds."""
    size, final, simple = record["config"], record["final"], record["baselines"]
    gain = simple["unigram"] - final["nats"]
    lines = [
        f"# {record['name']}: a small GPT-2",
        "",
        f"{size['layers']} layers, width {size['width']}, {size['heads']} heads, context {size['context']}, "
        f"{size['vocabulary']:,} byte-level byte-pair tokens; embedding and output head tied; "
        "`transformers.GPT2LMHeadModel`.",
        "Written by `python -m toolkit.pretrain`; its record is `training.json`.",
        "",
        "## Text",
        "",
        *_table(("corpus", "licence"), [(corpus["name"], corpus["licence"]) for corpus in record["corpora"]]),
        "",
        f"{record['documents']['all']:,} documents, {record['tokens']['train']:,} training tokens; "
        f"{record['documents']['held_out']:,} whole documents with {record['tokens']['validation']:,} tokens held out. "
        "Documents are parted by `<|endoftext|>`, which is bos and eos.",
        "",
        "## Loss",
        "",
        *_table(
            ("on the held-out documents", "nats a token"),
            [
                ("unigram of the training tokens", f"{simple['unigram']:.4f}"),
                ("bigram (interpolated Kneser-Ney)", f"{simple['bigram']:.4f}"),
                (
                    f"this model, after {record['steps']:,} steps ({record['epochs']:.2f} epochs)",
                    f"{final['nats']:.4f}",
                ),
                ("the same, weights rounded to float16 as stored", f"{final['nats_as_float16']:.4f}"),
            ],
        ),
        "",
        f"That is {gain:.2f} nats below the unigram. The model sees at most {size['context']} tokens and each token is "
        "predicted once, in windows of that length; the bigram always sees the token before.",
        "",
        *_table(
            ("step", "validation loss"),
            [(f"{step:,}", f"{nats:.4f}") for step, nats in zip(*record["validation"].values(), strict=True)],
        ),
        "",
        "## Training",
        "",
        f"AdamW (.9, .95), peak rate {size['lr']:g} after a warm-up of {size['warmup']:.0%} of the steps, cosine to a "
        f"tenth, weight decay {size['weight_decay']:g} on matrices, gradient norm at most 1, batches of "
        f"{size['batch']} sequences of {size['context']} tokens, embedding "
        f"{'frozen at random' if size['freeze_embedding'] == 'random' else 'trained'}, seed {record['seed']}. "
        f"{record['seconds']:,.0f} seconds{' since the last --resume' * record.get('resumed', False)} on "
        f"{record['hardware']['name']} ({record['hardware']['device']}, "
        f"processes: {record['hardware']['processes']}, threads in each: {record['hardware']['threads']}).",
        "",
        *_begun(record["start"]),
        "Whole models at earlier steps: `checkpoints/step_N`; embeddings at the other checkpoints: "
        "`embeddings.safetensors`. Weights are stored as float16 and load as float32.",
        "",
    ]
    return "\n".join(lines)


def _begun(start: dict[str, Any]) -> list[str]:
    """What the training went on from; of no model nothing is said."""
    told = [f"Trained on from `{start['from']}`."] if start["from"] else []
    if start["randomised_rows"]:
        alone = ", and nothing else was trained" * (start["train"] == "rows")
        told.append(f"Rows drawn anew before: {', '.join(map(str, start['randomised_rows']))}{alone}.")
    if start.get("norms_from"):
        told.append(f"The frozen rows have the norms of those of `{start['norms_from']}`.")
    return [" ".join(told), ""] if told else []


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ("---",) * len(head), *rows]]
