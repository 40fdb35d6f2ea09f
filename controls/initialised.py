"""A language model before training: the same architecture with weights drawn anew."""

import copy

import torch

from toolkit.language import LanguageModel, load_model, with_network


def initialised(model: LanguageModel | str, *, seed: int) -> LanguageModel:
    """A model whose every weight is drawn by its architecture's own initialisation, as transformers has it.

    Keeps the architecture, its configuration, the tokenizer and the hooks, so whatever is computed on the model can be
    computed on it; takes away all that training put there. The null it serves: architecture and data explain the score.
    The model given stays as it is. A training checkpoint at step 0, where there is one, is the same null with the
    weights that this very training began from. Where the model's weights were processed, so are those drawn.
    (transformers draws GPT-2's residual projections smaller with depth, as Radford et al. 2019, section 2.3; other
    architectures as each declares.)

    Args:
        model: a model, or a name or folder as `toolkit.language.load_model` takes it.
        seed: of the draw, on the CPU; another seed is another network.

    Raises:
        UserError: what `load_model` refuses.
    """
    model = load_model(model) if isinstance(model, str) else model
    own = model.bridge.original_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = type(own)(copy.deepcopy(own.config)).eval()
        return with_network(model, network.to(model.device), f"{model.name}, initialised with seed {seed}")
