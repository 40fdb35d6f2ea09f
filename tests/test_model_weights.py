"""Null networks: what each keeps is kept, what it takes away is gone, and a shared rotation changes no output."""

import gc

import numpy as np
import pytest
import random_models
import torch
from scipy import stats
from transformers import AutoTokenizer

from controls.initialised import initialised
from controls.model_weights import KINDS, drawn_anew, drawn_heads, rotated, spun, turned
from controls.network_matrices import EMBEDDINGS, matrices, synchronise
from controls.weights import SIDES, spectrum_matched
from toolkit.corpora import read_text, unigram
from toolkit.errors import UserError
from toolkit.forward import forward_to
from toolkit.language import load_model
from toolkit.plain_network import unwrapped

ROUNDING = 1e-5
"""Of the largest singular value or output: what float32 may change of it."""
EXACT = 1e-10
"""Log-probabilities of a float64 network that is rotated."""
OPTIONS = [
    ("init", {}),
    ("gaussian", {}),
    ("gaussian", {"embeddings": False}),
    ("shuffled", {}),
    ("cascade", {"blocks": 1}),
    *[("spectrum", {"side": side}) for side in (*SIDES, "products")],
]
each = pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
each_model = pytest.mark.parametrize("model", ["gpt2", "llama"], indirect=True)
each_side = pytest.mark.parametrize("side", SIDES)


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Two layers, 16 wide, gains and biases at random: GPT-2's kind, tied; Llama's, two query heads on a key head."""
    made = {"gpt2": random_models.gpt2(), "llama": random_models.llama()}
    folders = {kind: str(tmp_path_factory.mktemp(kind)) for kind in made}
    for kind, network in made.items():
        network.save_pretrained(folders[kind])
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="module")
def model(folders, request):
    return load_model(folders[getattr(request, "param", "gpt2")])


@pytest.fixture(scope="module")
def trained():
    return load_model("tiny-gpt2")


@torch.no_grad()
def outputs(model):
    return model.bridge(random_models.tokens()).log_softmax(-1)


def apart(a, b):
    return (outputs(a) - outputs(b)).abs().max().item()


def to_float64(model):
    model.bridge.to(torch.float64)
    synchronise(model)  # the bridge leaves folded weights of gated networks as they were


def weights(model):
    """Every matrix as it stands, by name, (out, in)."""
    return {matrix.name: matrix.weight.clone() for matrix in matrices(model)}


def pairs(model, null):
    """Each matrix beside what was drawn for it, where anything was."""
    ours, theirs = weights(model), weights(null)
    assert ours.keys() == theirs.keys()
    return {name: (ours[name], W) for name, W in theirs.items() if not torch.equal(W, ours[name])}


def same_spectrum(a, b):
    a, b = (torch.linalg.svdvals(W.double()) for W in (a, b))
    return bool((a - b).abs().max() <= ROUNDING * a[0])


def same_gram(a, b):
    """Whether W Wᵀ is the same: left singular vectors and singular values."""
    a, b = (W.double() @ W.double().T for W in (a, b))
    return bool((a - b).abs().max() <= ROUNDING * a.trace())


# One rotation of the residual stream


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_one_shared_rotation_changes_no_output_and_unshared_ones_do(folders, kind, monkeypatch):
    folded = load_model(folders[kind], fold_layer_norm=True)
    assert apart(rotated(folded, seed=0), folded) < 1e-3  # float32
    to_float64(folded)
    monkeypatch.setattr(torch, "float32", torch.float64)  # to which Llama's norm casts, whatever it is given
    turn, unshared = rotated(folded, seed=0), rotated(folded, seed=0, shared=False)
    assert apart(turn, folded) < EXACT
    assert apart(unshared, folded) > 0.1
    for null in (turn, unshared):
        assert len(pairs(folded, null)) == len(weights(folded))
        assert all(same_spectrum(*both) for both in pairs(folded, null).values())


def test_a_norm_that_subtracts_the_mean_needs_the_all_ones_direction_fixed(folders):
    folded = load_model(folders["gpt2"], fold_layer_norm=True)
    to_float64(folded)
    before = outputs(folded)
    folded.bridge.cfg.normalization_type = "RMS"
    assert torch.equal(outputs(folded), before)
    assert apart(rotated(folded, seed=0), folded) > 0.1


@each_model
def test_gains_that_are_not_folded_are_refused(model):
    with pytest.raises(UserError, match=r"ln1\.weight of .* is not 1 throughout: load the model with fold_layer_norm"):
        rotated(model, seed=0)


# Every kind


@each_model
@each
def test_the_seed_decides_and_the_model_is_untouched_bit_for_bit(model, kind, options):
    before, out = model.weights_hash, outputs(model)
    a, b, c = (drawn_anew(model, kind, seed=seed, **options) for seed in (1, 1, 2))
    assert a.weights_hash == b.weights_hash != c.weights_hash
    assert apart(a, model) > 0.1
    for weight in a.bridge.state_dict().values():
        weight.zero_()
    assert model.weights_hash == before
    assert torch.equal(outputs(model), out)
    assert a.tokenizer is model.tokenizer
    assert (a.hook_names, a.context, a.device) == (model.hook_names, model.context, model.device)


@each_model
@each
def test_norms_and_biases_stay_and_so_do_embeddings_when_asked(model, kind, options):
    null = drawn_anew(model, kind, seed=0, **options)
    changed = set(pairs(model, null))
    old, new = model.bridge.state_dict(), null.bridge.state_dict()
    vectors = {name for name, value in old.items() if value.ndim == 1 and not torch.equal(new[name], value)}
    if kind in ("init", "cascade"):
        assert "blocks.1.ln1.weight" in vectors  # the positive control
    else:
        assert vectors == set()
    if kind == "cascade":
        assert {name.split(".")[1] for name in changed} == {"1"}
    else:
        drawn = {name for name in weights(model) if options.get("embeddings", True) or name not in EMBEDDINGS}
        assert changed == drawn


@each_model
@each
def test_the_plain_network_on_a_nulls_weights_says_what_its_bridge_says(model, kind, options):
    """The bridge keeps GPT-2's queries, keys and values twice; a fast pass reads the other copy."""
    null, ids = drawn_anew(model, kind, seed=0, **options), random_models.tokens()
    with torch.no_grad():
        plain = unwrapped(null.bridge.original_model)(input_ids=ids).last_hidden_state
        torch.testing.assert_close(null.bridge.unembed(plain).log_softmax(-1), outputs(null), rtol=0, atol=1e-3)


def test_processed_weights_are_drawn_too(folders):
    """Folded, the bridge runs a gated network on copies of its weights."""
    folded = load_model(folders["llama"], fold_layer_norm=True)
    null = drawn_anew(folded, "spectrum", seed=0, embeddings=False)
    mlp, x = null.bridge.blocks[0].mlp, torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    gate, up, down = (getattr(mlp, part).weight for part in ("gate", "in", "out"))
    with torch.no_grad():
        wanted = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
        torch.testing.assert_close(mlp(x), wanted)
        assert (folded.bridge.blocks[0].mlp(x) - wanted).abs().max() > 0.1


def test_a_model_that_was_run_with_gradients_is_drawn_too(folders):
    model = load_model(folders["gpt2"])
    model.bridge(random_models.tokens()).sum().backward()
    assert apart(drawn_anew(model, "shuffled", seed=0), model) > 0.1


# Up to a hook

NOT_CASCADES = [(kind, options) for kind, options in OPTIONS if kind != "cascade"]


def up_to(model, hook):
    with torch.no_grad():
        return forward_to(model, [hook])(random_models.tokens())[hook]


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "ln_final.hook_normalized"])
@each_model
@pytest.mark.parametrize(("kind", "options"), NOT_CASCADES, ids=str)
def test_up_to_its_hook_a_null_is_the_one_drawn_whole(model, kind, options, hook):
    part, whole = drawn_anew(model, kind, seed=3, until=hook, **options), drawn_anew(model, kind, seed=3, **options)
    assert torch.equal(up_to(part, hook), up_to(whole, hook))
    assert not torch.allclose(up_to(part, hook), up_to(model, hook), atol=0.01)


@pytest.mark.parametrize(("kind", "options"), [("init", {}), ("spectrum", {})])
def test_a_trained_models_null_is_the_same_up_to_its_hook_and_not_beyond(trained, kind, options):
    hook = "blocks.1.hook_resid_post"
    part, whole = drawn_anew(trained, kind, seed=0, until=hook), drawn_anew(trained, kind, seed=0)
    assert torch.equal(up_to(part, hook), up_to(whole, hook))
    assert torch.equal(outputs(part), outputs(whole)) == (kind == "init")


@each_model
def test_what_comes_after_the_hook_is_not_drawn(model):
    drawn = pairs(model, drawn_anew(model, "spectrum", seed=0, until="blocks.0.hook_resid_post"))
    beyond = {name for name in weights(model) if name.startswith("blocks.1.") or name == "unembed"}
    assert beyond  # tied embeddings are one, `embed`
    assert set(drawn) == set(weights(model)) - beyond


# Entries


@each_model
def test_gaussian_keeps_each_matrixs_mean_and_variance_and_no_more(model):
    drawn = [pairs(model, drawn_anew(model, "gaussian", seed=seed)) for seed in range(20)]
    for name, (W, _) in drawn[0].items():
        new = torch.stack([each[name][1] for each in drawn]).double()
        n, sd = new.numel(), W.double().std(correction=0)
        assert abs(new.mean() - W.double().mean()) < 4.5 * sd / n**0.5, name
        assert abs(new.var() / sd**2 - 1) < 4.5 * (2 / n) ** 0.5, name
        assert stats.kstest(new.flatten(), "norm", (float(W.double().mean()), float(sd))).pvalue > 1e-4, name
        assert not same_spectrum(new[0], W), name


@each_model
def test_shuffled_entries_are_a_permutation(model):
    for old, new in pairs(model, drawn_anew(model, "shuffled", seed=0)).values():
        assert torch.equal(new.flatten().sort().values, old.flatten().sort().values)
        assert (new == old).float().mean() < 0.1
        assert not same_spectrum(old, new)


# Blocks from the top


def test_a_cascade_goes_on_where_it_stopped_and_ends_with_every_block_as_initialised(model):
    one, both = (drawn_anew(model, "cascade", seed=4, blocks=blocks).bridge.state_dict() for blocks in (1, 2))
    start, old = initialised(model, seed=4).bridge.state_dict(), model.bridge.state_dict()
    for name, weight in both.items():
        assert torch.equal(weight, (start if name.startswith("blocks.") else old)[name])
        assert torch.equal(one[name], (start if name.startswith("blocks.1.") else old)[name])


def test_a_cascade_of_processed_weights_predicts_what_one_of_the_model_itself_does(folders, model):
    processed = load_model(folders["gpt2"], fold_layer_norm=True, centre_writing_weights=True)
    plain, other = (drawn_anew(each, "cascade", seed=4, blocks=1) for each in (model, processed))
    assert other.processing == processed.processing
    torch.testing.assert_close(outputs(plain), outputs(other), rtol=0, atol=1e-4)
    assert (outputs(plain) - outputs(model)).abs().max() > 1e-2


def test_a_network_drawn_from_one_that_has_run_has_hooks_of_its_own_and_outlives_it(folders):
    """The bridge wires some hooks as it first runs; those of a copy would tell the model that it was copied from."""
    model = load_model(folders["gpt2"])
    before = outputs(model)
    drawn = drawn_anew(model, "spectrum", seed=0)
    del model
    gc.collect()
    fresh = drawn_anew(load_model(folders["gpt2"]), "spectrum", seed=0)
    assert (outputs(drawn) - before).abs().max() > 1e-3
    torch.testing.assert_close(outputs(drawn), outputs(fresh))


# Singular values


@each_model
@each_side
def test_a_spectrum_draw_keeps_singular_values_and_the_vectors_of_the_other_side(model, side):
    for name, (old, new) in pairs(model, drawn_anew(model, "spectrum", seed=0, side=side)).items():
        assert same_spectrum(old, new), name
        assert same_gram(old, new) == (side == "right"), name
        assert same_gram(old.T, new.T) == (side == "left"), name


@each_model
def test_products_keep_the_singular_values_of_each_heads_circuits_where_both_does_not(model):
    old = products(weights(model), model.bridge.cfg.d_head)
    kept, lost = (products(weights(drawn_anew(model, "spectrum", seed=0, side=s)), model.bridge.cfg.d_head)
                  for s in ("products", "both"))  # fmt: skip
    assert len(old) == 2 * 2 * 2  # layers, heads, circuits
    for name, product in old.items():
        assert same_spectrum(product, kept[name]), name
        assert not same_spectrum(product, lost[name]), name
        assert not same_gram(product, kept[name]), name
        assert not same_gram(product.T, kept[name].T), name


def products(W, d_head):
    """W_Qᵀ W_K and W_O W_V of each head, query heads in turn on the key and value heads they share."""
    found = {}
    for block in ("blocks.0.attn", "blocks.1.attn"):
        q, k, v = (W[f"{block}.{part}"].split(d_head) for part in "qkv")
        o = W[f"{block}.o"].split(d_head, 1)
        for head in range(len(q)):
            shared = head // (len(q) // len(k))
            found[f"{block} QK {head}"] = q[head].T @ k[shared]
            found[f"{block} OV {head}"] = o[head] @ v[shared]
    return found


def test_a_rotary_turn_between_the_factors_leaves_the_products_singular_values_kept(model):
    W, generator = weights(model), np.random.default_rng(0)
    q, k = (W[f"blocks.0.attn.{part}"][:8] for part in "qk")
    turn = turned(torch.eye(8), 8, generator=generator)
    new_q, new_k = (drawn_heads(w, part, 8, generator=generator) for w, part in ((q, "attn.q"), (k, "attn.k")))
    assert same_spectrum(q.T @ turn @ k, new_q.T @ turn @ new_k)
    assert not same_spectrum(q.T @ k, new_q.T @ turn @ new_k)


@pytest.mark.parametrize("shape", [(5, 5), (8, 6), (6, 8), (20, 5), (5, 20)], ids=str)
@each_side
def test_a_spun_matrix_has_the_law_of_the_one_made_by_svd(shape, side):
    """Another implementation as oracle: three statistics of the draw, Kolmogorov-Smirnov over 400 draws."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, shape[1])
    generator = np.random.default_rng(1)
    ours = torch.stack([spun(W, side=side, generator=generator) for _ in range(400)])
    svd = torch.stack([spectrum_matched(W, seed=seed, side=side) for seed in range(400)])
    for read in (lambda x: x[:, 0, 0], lambda x: x[:, -1, -1], lambda x: (x * W).sum((1, 2))):
        assert stats.ks_2samp(read(ours), read(svd)).pvalue > 1e-4
    assert stats.ks_2samp((ours * W).sum((1, 2)), (3 * svd * W).sum((1, 2))).pvalue < 1e-4  # it tells


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (6, 6), (9, 6), (40, 6)])
def test_turned_is_the_q_of_the_gaussian_matrix_it_draws(rows, columns):
    H = turned(torch.eye(columns), rows, generator=np.random.default_rng(5))
    torch.testing.assert_close(H.T @ H, torch.eye(columns), rtol=0, atol=ROUNDING)
    G = torch.from_numpy(np.random.default_rng(5).standard_normal((rows, columns), dtype=np.float32))
    torch.testing.assert_close(H[:, 0], G[:, 0] / G[:, 0].norm(), rtol=0, atol=ROUNDING)
    Q, R = torch.linalg.qr(G)
    if rows >= 2 * columns:
        torch.testing.assert_close(H, Q * R.diagonal().sign(), rtol=0, atol=ROUNDING)


def test_reflections_draw_every_rotation_and_every_mirror_image_alike():
    generator = np.random.default_rng(2)
    H = torch.stack([turned(torch.eye(3), 3, generator=generator) for _ in range(2000)])
    reference = stats.ortho_group.rvs(3, size=2000, random_state=0)
    assert stats.ks_2samp(H.diagonal(dim1=1, dim2=2).sum(1), np.trace(reference, axis1=1, axis2=2)).pvalue > 1e-4
    assert stats.binomtest(int((H.det() > 0).sum()), 2000).pvalue > 1e-4
    with pytest.raises(UserError, match="4 orthonormal columns do not fit into 3 rows"):
        turned(torch.eye(4), 3, generator=generator)


# What training put there


@torch.no_grad()
def loss(model, ids):
    """Nats a token."""
    predicted = model.bridge(ids)[:, :-1].log_softmax(-1)
    return -predicted.gather(2, ids[:, 1:, None]).mean().item()


WHOLE = [(kind, options) for kind, options in OPTIONS if kind != "cascade" and options != {"embeddings": False}]


@pytest.fixture(scope="module")
def text(trained, data):
    """Windows of a corpus, and the nats a token that its token frequencies cost there."""
    read = read_text(data / "text" / "wikitext2_valid.txt.gz")[:200_000]
    ids = torch.tensor(trained.tokenizer(read[:20_000])["input_ids"][:1024]).reshape(8, 128)
    frequencies = unigram(read, trained.tokenizer, trained.vocabulary).log()
    return ids, -frequencies[ids[:, 1:]].mean().item()


@pytest.mark.parametrize(("kind", "options"), [*WHOLE, ("gaussian", {"embeddings": False})], ids=str)
def test_a_null_of_a_trained_model_predicts_no_better_than_token_frequencies(trained, text, kind, options):
    ids, chance = text
    assert loss(trained, ids) < chance - 0.5  # the positive control
    assert loss(drawn_anew(trained, kind, seed=0, **options), ids) > chance


@pytest.mark.parametrize(("kind", "options"), WHOLE, ids=str)
def test_embeddings_of_a_word_and_its_capitalised_form_are_no_longer_alike(trained, kind, options):
    """With the left singular vectors alone drawn anew, tokens keep their Gram matrix: the positive control."""
    words = {trained.tokenizer.decode([i]): i for i in range(trained.vocabulary)}
    forms = [(i, words[w.title()]) for w, i in words.items() if w[1:].isalpha() and w.islower() and w.title() in words]
    first, second = torch.tensor(forms).T

    def alike(model):
        """Mean cosine of the pairs, in deviations of its law over other pairings of the same rows."""
        rows = model.bridge.W_E.detach() - model.bridge.W_E.detach().mean(0)
        rows = rows / rows.norm(dim=1, keepdim=True)
        cosines = rows[first] @ rows[second].T
        draw = torch.Generator().manual_seed(0)
        others = [torch.randperm(len(cosines), generator=draw) for _ in range(300)]
        means = torch.stack([cosines[torch.arange(len(order)), order].mean() for order in others])
        return float((cosines.diagonal().mean() - means.mean()) / means.std())

    assert alike(trained) > 10
    null = alike(drawn_anew(trained, kind, seed=0, **options))
    assert null > 10 if kind == "spectrum" and options["side"] == "left" else abs(null) < 4.5


@pytest.mark.slow
@pytest.mark.real_model
def test_a_trained_llama_survives_one_rotation_and_no_spectrum_draw(real_model):
    folded = load_model(str(real_model), fold_layer_norm=True)
    assert apart(rotated(folded, seed=0), folded) < 1e-3
    null = drawn_anew(folded, "spectrum", seed=0)
    assert apart(null, folded) > 1
    for ours, theirs in zip(matrices(folded), matrices(null), strict=True):
        assert not ours.name.startswith("blocks.7.") or same_spectrum(ours.weight, theirs.weight), ours.name


# Mistakes


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("spectral", {}, r"unknown kind of null network 'spectral': did you mean 'spectrum'\? valid: init, gaussian"),
        ("spectrum", {"side": "rigth"}, r"unknown side 'rigth': did you mean 'right'\?"),
        ("gaussian", {"side": "left"}, "side 'left' is for spectrum, not for gaussian"),
        ("init", {"embeddings": False}, "init has no embeddings to choose"),
        ("cascade", {}, "blocks=None for cascade: a cascade needs it"),
        ("cascade", {"blocks": 3}, "3 blocks: .* has 2, give from 1 to that"),
        ("cascade", {"blocks": 0}, "0 blocks"),
        ("shuffled", {"blocks": 1}, "blocks=1 for shuffled"),
        ("cascade", {"blocks": 1, "until": "blocks.0.hook_resid_post"}, "a cascade begins at the top"),
        ("spectrum", {"until": "blocks.0.hook_resid"}, "unknown hook of .* 'blocks.0.hook_resid': did you mean"),
        ("shuffled", {"seed": -1}, "seed -1 is negative"),
    ],
)
def test_a_mistake_is_told_in_one_line(model, kind, options, message):
    with pytest.raises(UserError, match=message) as error:
        drawn_anew(model, kind, **{"seed": 0, **options})
    assert "\n" not in str(error.value)


def test_the_kinds_tested_are_all_the_kinds():
    assert {kind for kind, _ in OPTIONS} == set(KINDS)
