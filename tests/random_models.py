"""Small random language models whose every weight matters, layer norms included, and tokens for them."""

import torch


def _randomised(model, seed):
    """Weights large enough that layers act, norms that scale and shift, and no two rows alike."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = ("ln_" in name and "weight" in name) or "norm" in name
            weight.copy_(is_scale + 0.3 * torch.randn(weight.shape, generator=draw))
    return model.eval()


def gpt2(seed=0):
    """A GPT-2 of 40 tokens, 16 wide, two layers, with a context of 24."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"vocab_size": 40, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return _randomised(GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)), seed)


def llama(seed=0):
    """A Llama of 40 tokens, 16 wide, two layers, with RMS norm and untied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 24}
    return _randomised(LlamaForCausalLM(LlamaConfig(**size, **heads, bos_token_id=0, eos_token_id=0)), seed)


def tokens(batch=3, length=10, seed=0):
    return torch.randint(40, (batch, length), generator=torch.Generator().manual_seed(seed))
