"""Splicing an SAE into a model: what is exact, a plain Hugging Face model as oracle, and shares that are undefined."""

import math
import warnings
import weakref

import pytest
import torch
from random_models import gpt2, llama
from torch.nn.functional import cross_entropy, kl_div

from toolkit.configs import SAEConfig
from toolkit.errors import UserError
from toolkit.language import load_model
from toolkit.sae import SAE, load_sae
from toolkit.splicing import mean_row, splice_report

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2().save_pretrained(folder)
    return load_model(str(folder))


@pytest.fixture(scope="module")
def batches():
    """Two batches of unlike size that the model finds likely, with beginnings and ends masked."""
    network, made = gpt2(), []
    for batch, length, first in ((3, 12, 0), (2, 7, 5)):
        tokens = torch.arange(first, first + batch)[:, None]
        while tokens.shape[1] < length:
            with torch.no_grad():
                tokens = torch.cat([tokens, network(tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        mask = torch.ones(batch, length, dtype=torch.bool)
        mask[:, 0] = mask[0, -3:] = False
        made.append((tokens, mask))
    return made


def identity_sae(width=16):
    """An SAE of two latents a coordinate, its positive and its negative part: it loses nothing."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])[None]
    zeros = {"b_enc": torch.zeros(1, 2 * width), "b_dec": torch.zeros(1, width)}
    config = SAEConfig(architecture="topk", width=2 * width, k=width)
    return SAE(config, "rows", {"W_enc": both, "W_dec": both.clone(), **zeros}, torch.zeros(0, 1))


def shrunk(rows):
    return 0.7 * rows + 0.05


def test_the_sae_that_loses_nothing_recovers_everything_exactly(model, batches):
    for sae in (lambda rows: rows, identity_sae()):
        report = splice_report(model, batches, HOOK, sae)
        assert (report.recovered_zero, report.recovered_mean, report.kl) == (1.0, 1.0, 0.0)
        assert report.spliced == report.clean < min(report.zero_ablated, report.mean_ablated)


def test_the_sae_that_loses_everything_recovers_nothing_exactly(model, batches):
    nothing = splice_report(model, batches, HOOK, torch.zeros_like)
    assert (nothing.recovered_zero, nothing.spliced) == (0.0, nothing.zero_ablated)
    assert nothing.kl > 0.1
    mean = mean_row(model, batches, HOOK)
    average = splice_report(model, batches, HOOK, mean.expand_as)
    assert (average.recovered_mean, average.spliced) == (0.0, average.mean_ablated)
    between = splice_report(model, batches, HOOK, shrunk)
    assert 0 < between.recovered_zero < 1
    assert 0 < between.kl < nothing.kl


def replaced(network, tokens, mask, function):
    """Logits of a Hugging Face model whose first block's output is replaced where the mask is true."""

    def hook(module, inputs, output):
        rows = output[0] if isinstance(output, tuple) else output
        changed = torch.where(mask[..., None], function(rows), rows)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = network.transformer.h[0].register_forward_hook(hook)
    with torch.no_grad():
        logits = network(tokens, use_cache=False).logits
    handle.remove()
    return logits


def test_every_number_is_what_a_plain_hugging_face_model_gives(model, batches):
    network = gpt2()
    with torch.no_grad():
        hidden = [network(t, output_hidden_states=True).hidden_states[1][m] for t, m in batches]
    mean = torch.cat(hidden).mean(0)
    torch.testing.assert_close(mean_row(model, batches, HOOK), mean)
    ways = {
        "clean": lambda rows: rows,
        "spliced": shrunk,
        "zero_ablated": torch.zeros_like,
        "mean_ablated": mean.expand_as,
    }
    losses, divergence = {name: [] for name in ways}, []
    for tokens, mask in batches:
        logits = {name: replaced(network, tokens, mask, way) for name, way in ways.items()}
        both = mask[:, :-1] & mask[:, 1:]
        for name, given in logits.items():
            losses[name].append(cross_entropy(given[:, :-1][both], tokens[:, 1:][both], reduction="none"))
        p, q = (logits[name].log_softmax(-1)[mask] for name in ("clean", "spliced"))
        divergence.append(kl_div(q, p, log_target=True, reduction="none").sum(-1))
    report = splice_report(model, batches, HOOK, shrunk)
    expected = {name: torch.cat(parts).mean().item() for name, parts in losses.items()}
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value, rel=1e-5), name
    assert len(set(expected.values())) == 4
    assert report.kl == pytest.approx(torch.cat(divergence).mean().item(), rel=1e-4)
    assert (report.positions, report.predictions) == (len(torch.cat(hidden)), len(torch.cat(losses["clean"])))
    gap = expected["zero_ablated"] - expected["clean"]
    assert report.recovered_zero == pytest.approx((expected["zero_ablated"] - expected["spliced"]) / gap, rel=1e-4)


def test_rows_that_are_masked_out_are_neither_shown_nor_replaced(model, batches):
    seen = []
    report = splice_report(model, batches, HOOK, lambda rows: (seen.append(len(rows)), rows)[1])
    assert sum(seen) == report.positions == sum(int(mask.sum()) for _, mask in batches)
    padded = [
        (torch.cat([t, torch.full((len(t), 4), 9)], 1), torch.cat([m, torch.zeros(len(t), 4) > 0], 1))
        for t, m in batches
    ]
    again = splice_report(model, padded, HOOK, shrunk)
    assert again.spliced == pytest.approx(splice_report(model, batches, HOOK, shrunk).spliced, abs=1e-6)


def test_a_share_is_none_where_ablation_costs_nothing_and_says_so(model, batches):
    # A mean row "found" by the model's own activations at one position everywhere would cost; so draw unlikely tokens.
    unlikely = [(39 - tokens, mask) for tokens, mask in batches]
    with torch.no_grad():
        worst = [gpt2()(t, use_cache=False).logits[:, -1:].argmin(-1) for t, _ in unlikely]
    pairs = [
        (torch.cat([t[:, -1:], w], 1), torch.ones(len(t), 2) > 0) for (t, _), w in zip(unlikely, worst, strict=True)
    ]
    report = splice_report(model, pairs, HOOK, shrunk, mean=torch.zeros(16))
    assert report.clean > report.zero_ablated == report.mean_ablated
    assert report.recovered_zero is report.recovered_mean is None
    assert "zero ablation costs nothing" in report.why
    assert "mean ablation costs nothing" in report.why
    assert splice_report(model, batches, HOOK, shrunk).why == ""


def test_a_given_mean_saves_a_pass_and_a_generator_will_do(model, batches):
    mean, finished = mean_row(model, batches, HOOK), []
    once = splice_report(model, iter(batches), HOOK, shrunk, mean=mean, progress=finished.append)
    assert once == splice_report(model, batches, HOOK, shrunk)
    assert finished == [1, 1]
    with pytest.raises(UserError, match="give batches as a list, or the mean itself"):
        splice_report(model, iter(batches), HOOK, shrunk)


def test_batches_are_let_go_of_as_they_are_done(model):
    class Batches:
        alive, most = [], 0

        def __iter__(self):
            for number in range(8):
                tokens = torch.full((2, 5), number)
                self.alive.append(weakref.ref(tokens))
                self.most = max(self.most, sum(ref() is not None for ref in self.alive))
                yield tokens, torch.ones(2, 5, dtype=torch.bool)

    batches = Batches()
    assert math.isfinite(splice_report(model, batches, HOOK, shrunk).kl)
    assert len(batches.alive) == 16
    assert batches.most <= 2


def test_heads_are_flattened_for_the_sae(model, batches):
    widths = []
    splice_report(model, batches, "blocks.1.attn.hook_z", lambda rows: (widths.append(rows.shape[1]), rows)[1])
    assert set(widths) == {16}


def test_a_saved_sae_is_loaded_and_spliced_in(model, batches, tmp_path):
    sae = identity_sae()
    sae.metadata.update(hook_name="blocks.0.hook_out", model_name="small")
    sae.save(tmp_path / "sae")
    loaded = load_sae(str(tmp_path / "sae"))
    assert (loaded.W_dec.shape, loaded.metadata["hook_name"]) == ((1, 32, 16), "blocks.0.hook_out")
    rows = torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.encode(rows), sae.encode(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # hook_out is another name of the same hook
        report = splice_report(model, batches, HOOK, loaded)
    assert report.recovered_zero == pytest.approx(1, abs=1e-6)
    with pytest.warns(
        UserWarning, match=r"trained at blocks.0.hook_out, and is spliced in at blocks.1.hook_resid_post"
    ):
        splice_report(model, batches, "blocks.1.hook_resid_post", loaded)


def test_an_sae_or_hook_that_does_not_fit_is_one_line(model, batches):
    with pytest.raises(UserError, match=r"the SAE reads rows of 8 numbers, blocks.0.hook_resid_post holds 16"):
        splice_report(model, batches, HOOK, identity_sae(8))
    two = identity_sae()
    two = SAE(two.config, "two", {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in two.parameters.items()}, two.history)
    with pytest.raises(UserError, match="2 instances: take instance"):
        splice_report(model, batches, HOOK, two)
    with pytest.raises(UserError, match=r"did you mean 'blocks.0.hook_resid_post'"):
        splice_report(model, batches, "blocks.0.hook_resid_posd", shrunk)
    with pytest.raises(UserError, match="no token is masked in"):
        splice_report(model, [(tokens, mask & False) for tokens, mask in batches], HOOK, shrunk)
    with pytest.raises(UserError, match="there is no next token to predict"):
        splice_report(model, [(tokens[:, :1], mask[:, :1] | True) for tokens, mask in batches], HOOK, shrunk)
    with pytest.raises(UserError, match="no SAE at"):
        load_sae("nowhere/at/all")


def test_it_works_on_another_family(batches, tmp_path):
    llama().save_pretrained(tmp_path)
    report = splice_report(load_model(str(tmp_path)), batches, HOOK, lambda rows: rows)
    assert report.spliced == report.clean
    assert report.kl == 0
