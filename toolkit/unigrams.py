"""How often each token occurs, from a language model alone."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import require
from toolkit.language import load_network


@torch.inference_mode()
def model_unigram(model: str, *, sequences: int = 64, length: int = 128, seed: int) -> Float[Tensor, " tokens"]:
    """Probability of each token in text that the model writes itself, estimated from its own distributions.

    The mean, over `sequences` sequences that it samples and their `length` positions (fewer where its context is
    shorter), of its next-token distribution:
    the counts of the sampled tokens with the last draw averaged out (Rao-Blackwell), so that tokens never drawn have
    their probability too. Sequences begin with the model's token for the beginning of a text, for want of one with
    that for the end, for want of both with a token drawn at random; they go on where the model ends a text.

    Returns:
        float32, one for each token of the tokenizer in the order of their numbers, all rows of the embedding for a
        model without one; rows that no token stands for are never drawn and have no share.

    Raises:
        UserError: the model cannot be read, or no sequences are asked for.
    """
    loaded = load_network(model)
    network, tokenizer = loaded.network.eval(), loaded.tokenizer
    most = getattr(network.config, "max_position_embeddings", None) or length
    require(length >= 1, f"length={length}: expected a whole number of at least 1")
    require(sequences >= 1, f"sequences={sequences}: expected a whole number of at least 1")
    size = network.config.vocab_size
    known = torch.arange(size) if tokenizer is None else torch.tensor(sorted(set(tokenizer.get_vocab().values())))
    generator = torch.Generator().manual_seed(seed)
    ids, past = _first(network.config, known, sequences, generator), None
    total = torch.zeros(len(known), dtype=torch.float64)
    for _ in range(min(length, most)):
        out = network(input_ids=ids[:, None], past_key_values=past, use_cache=True)
        past = out.past_key_values
        chances = out.logits[:, -1, known].float().softmax(-1)  # (sequences, tokens)
        total += chances.sum(0)
        ids = known[torch.multinomial(chances, 1, generator=generator)[:, 0]]
    return (total / total.sum()).float()


def _first(config: Any, known: Int[Tensor, " tokens"], count: int, generator: torch.Generator) -> Tensor:
    for name in ("bos_token_id", "eos_token_id"):
        given = getattr(config, name, None)
        if given is not None:
            return torch.full((count,), given[0] if isinstance(given, list) else given)
    return known[torch.randint(len(known), (count,), generator=generator)]
