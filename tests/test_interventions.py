"""Interventions: theorems about them, identities that hold bit for bit, and one line for what cannot be done."""

import pytest
import torch
from random_models import gpt2, llama, tokens
from torch.nn.functional import cross_entropy, normalize

from toolkit.errors import UserError
from toolkit.interventions import (
    Ablate,
    Add,
    Patch,
    ProjectOut,
    Replace,
    SetCoordinate,
    SwapCoordinates,
    intervene,
    record,
    run,
)
from toolkit.language import load_model

PRE, POST, LAST = "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
MID, ATTENTION = "blocks.0.hook_resid_mid", "blocks.0.hook_attn_out"
HEADS = "blocks.1.attn.hook_z"


def booted(model, folder):
    model.save_pretrained(folder)
    return load_model(str(folder))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random GPT-2 of two blocks."""
    return booted(gpt2(), tmp_path_factory.mktemp("gpt2"))


def direction(seed=0, *shape):
    return torch.randn(shape or (16,), generator=torch.Generator().manual_seed(seed))


def hooks_left(model):
    return sum(len(p.fwd_hooks) + len(p._forward_hooks) for p in model.bridge.hook_dict.values())


def rows_after(model, given, interventions, hook):
    """What a hook holds once interventions, some of them there, have acted."""
    seen = []
    intervene(model, given, [*interventions, Replace(hook, lambda rows: (seen.append(rows.clone()), rows)[1])])
    return seen[0].reshape(*given.shape, -1)


def own(model, hook, given=None):
    return record(model, tokens() if given is None else given, [hook])[hook]


IDENTITIES = {
    "nothing": lambda _: [],
    "add, scale 0": lambda _: [Add(POST, direction(), scale=0.0)],
    "patch with its own rows": lambda m: [Patch(hook, own(m, hook)) for hook in (POST, HEADS, MID)],
    "replace by the same": lambda _: [Replace(PRE, lambda rows: rows), Replace(HEADS, lambda rows: rows)],
    "nowhere": lambda _: [
        Ablate(POST, "zero", positions=[]),
        Add(PRE, direction(), positions=torch.zeros(3, 10).bool()),
    ],
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_changes_nothing_bit_for_bit(name, model):
    effect = intervene(model, tokens(), IDENTITIES[name](model))
    assert torch.equal(effect.logits, effect.clean_logits)
    assert torch.equal(effect.loss, effect.clean_loss)
    assert not effect.kl.any()
    assert intervene(model, tokens(), Add(POST, direction(), scale=1e-3)).kl.min() > 0


def test_setting_a_coordinate_to_its_own_value_changes_nothing_up_to_rounding(model):
    unit = normalize(direction(), dim=0)
    value = own(model, POST) @ unit
    effect = intervene(model, tokens(), SetCoordinate(POST, unit, value))
    torch.testing.assert_close(effect.logits, effect.clean_logits, atol=1e-5, rtol=0)
    assert intervene(model, tokens(), SetCoordinate(POST, unit, value + 1)).mean_kl > 1e-3


def test_layer_norm_removes_the_all_ones_direction_and_no_other(model, tmp_path):
    ones = torch.ones(16)
    other = normalize(direction(), dim=0) * ones.norm()
    for hook in (PRE, POST, LAST):
        assert intervene(model, tokens(), Add(hook, ones, scale=3.0)).kl.max() < 1e-8
        assert intervene(model, tokens(), Add(hook, other, scale=3.0)).kl.min() > 1e-3
    rms = booted(llama(), tmp_path)
    assert intervene(rms, tokens(), Add(POST, ones, scale=3.0)).kl.min() > 1e-3, "RMS norm keeps the mean"


def test_projecting_out_twice_is_projecting_out_once_and_leaves_nothing_along(model):
    directions = direction(1, 3, 16)
    once, twice = (intervene(model, tokens(), [ProjectOut(POST, directions)] * times).logits for times in (1, 2))
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=0)
    left = rows_after(model, tokens(), [ProjectOut(POST, directions)], POST)
    assert (left @ directions.T).abs().max() < 1e-5
    before = own(model, POST)
    assert (before @ directions.T).abs().max() > 0.1
    taken = before - left
    in_span = torch.linalg.lstsq(directions.T, taken.flatten(0, 1).T).solution
    torch.testing.assert_close((directions.T @ in_span).T, taken.flatten(0, 1), atol=1e-5, rtol=0)


def test_dependent_and_long_directions_span_what_they_span(model):
    one = direction()
    same = intervene(model, tokens(), ProjectOut(POST, torch.stack([one, -1e4 * one, 1e-4 * one])))
    torch.testing.assert_close(same.logits, intervene(model, tokens(), ProjectOut(POST, one)).logits, atol=1e-5, rtol=0)
    everything = rows_after(model, tokens(), [ProjectOut(POST, torch.eye(16))], POST)
    assert everything.abs().max() < 1e-5


@pytest.mark.parametrize("length", [0.01, 1.0, 50.0])
def test_a_coordinate_that_was_set_is_read_back_and_the_rest_stays(length, model):
    unit = normalize(direction(), dim=0)
    given = torch.linspace(-2, 2, 30).reshape(3, 10)
    for value in (1.5, given):
        after = rows_after(model, tokens(), [SetCoordinate(POST, length * unit, value)], POST)
        torch.testing.assert_close(after @ unit, torch.as_tensor(value).expand(3, 10), atol=1e-5, rtol=0)
        moved = after - own(model, POST)
        torch.testing.assert_close(moved - (moved @ unit)[..., None] * unit, torch.zeros(3, 10, 16), atol=1e-5, rtol=0)


def test_patching_the_whole_stream_gives_the_other_runs_logits(model):
    others = tokens(seed=1)
    for hook in (PRE, POST, LAST):
        effect = intervene(model, tokens(), Patch(hook, own(model, hook, others)))
        assert torch.equal(effect.logits, intervene(model, others, []).clean_logits)
        assert not torch.equal(effect.logits, effect.clean_logits)
    only_heads = intervene(model, tokens(), Patch(HEADS, own(model, HEADS, others)))
    assert not torch.allclose(only_heads.logits, intervene(model, others, []).clean_logits)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_change_between_attention_and_mlp_stays_in_the_stream(make, tmp_path):
    model, others = booted(make(), tmp_path), tokens(seed=1)
    patched = intervene(model, tokens(), Patch(MID, own(model, MID, others)))
    torch.testing.assert_close(patched.logits, intervene(model, others, []).clean_logits, atol=1e-4, rtol=0)
    branch = intervene(model, tokens(), Patch("blocks.0.ln2.hook_in", own(model, MID, others)))
    assert (branch.logits - patched.logits).abs().max() > 0.1, "at the layer norm only the MLP is reached"
    both = [
        Add(MID, direction(), scale=2.0),
        Ablate("blocks.0.hook_mlp_out", "zero"),
        SetCoordinate(MID, direction(1), 3),
    ]
    as_attention = [Add(ATTENTION, direction(), scale=2.0), both[1]]
    moved, expected = (intervene(model, tokens(), list(chosen)).logits for chosen in (both[:2], as_attention))
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
    after = rows_after(model, tokens(), both, POST)
    torch.testing.assert_close(after @ normalize(direction(1), dim=0), torch.full((3, 10), 3.0), atol=1e-4, rtol=0)
    left = intervene(model, tokens(), [Add(MID, direction()), Ablate(POST, "zero")]).logits
    assert torch.equal(left, intervene(model, tokens(), Ablate(POST, "zero")).logits), "others follow at the output"


def test_a_block_that_is_not_stream_plus_mlp_is_refused(model):
    moved = Add("blocks.0.ln2.hook_in", direction())
    with pytest.raises(UserError, match=r"cannot be changed: .*change blocks.0.hook_attn_out instead"):
        intervene(model, tokens(), [moved, Add(MID, direction())])
    assert intervene(model, tokens(), [Add(MID, direction()), moved]).mean_kl > 0


@pytest.mark.parametrize("hook", [PRE, POST, HEADS])
def test_a_patch_at_one_position_reaches_that_one_and_later_ones_only(hook, model):
    other = own(model, hook, tokens(seed=1))
    effect = intervene(model, tokens(), Patch(hook, other, positions=[4]))
    assert torch.equal(effect.logits[:, :4], effect.clean_logits[:, :4])
    assert not effect.kl[:, :4].any()
    assert effect.kl[:, 4].min() > 0
    reached = effect.kl[:, 5:]
    assert not reached.any() if hook == HEADS else reached.min() > 0, "a last block's heads reach no later position"


def test_zeroing_what_a_block_writes_is_removing_the_block(model):
    shorter = gpt2()
    del shorter.transformer.h[0]
    shorter.transformer.h[0].attn.layer_idx = 0
    writes = [Ablate("blocks.0.hook_attn_out", "zero"), Ablate("blocks.0.hook_mlp_out", "zero")]
    effect = intervene(model, tokens(), writes)
    with torch.no_grad():
        torch.testing.assert_close(effect.logits, shorter(tokens(), use_cache=False).logits, atol=1e-5, rtol=0)
    assert effect.mean_kl > 1e-2


def test_mean_ablation_writes_the_mean_of_the_rows_it_replaces_or_the_one_given(model):
    rows, chosen = own(model, POST), torch.rand(3, 10, generator=torch.Generator().manual_seed(2)) < 0.5
    after = rows_after(model, tokens(), [Ablate(POST, "mean", positions=chosen)], POST)
    torch.testing.assert_close(after[chosen], rows[chosen].mean(0).expand(int(chosen.sum()), -1))
    assert torch.equal(after[~chosen], rows[~chosen])
    torch.testing.assert_close(after.flatten(0, 1).mean(0), rows.flatten(0, 1).mean(0), atol=1e-5, rtol=1e-5)
    given = rows_after(model, tokens(), [Ablate(POST, "mean", direction())], POST)
    assert torch.equal(given, direction().expand(3, 10, 16))


def test_resampling_keeps_the_distribution_and_loses_the_place(model):
    rows, chosen = own(model, POST), torch.ones(3, 10, dtype=torch.bool)
    chosen[:, :2] = False
    after, again, otherwise = (
        rows_after(model, tokens(), [Ablate(POST, "resample", seed=seed, positions=chosen)], POST) for seed in (0, 0, 1)
    )
    assert torch.equal(after, again)
    assert not torch.equal(after, otherwise)
    assert torch.equal(after[~chosen], rows[~chosen])
    as_sets = [sorted(map(tuple, kept[chosen].tolist())) for kept in (after, rows)]
    assert as_sets[0] == as_sets[1]
    assert (after[chosen] != rows[chosen]).any(1).float().mean() > 0.8


def test_swapping_twice_is_doing_nothing_and_once_is_not(model):
    given = tokens(batch=4)
    swap = SwapCoordinates(POST, direction(), torch.tensor([1, 0, 3, 2]))
    once, twice = intervene(model, given, swap), intervene(model, given, [swap, swap])
    torch.testing.assert_close(twice.logits, twice.clean_logits, atol=1e-5, rtol=0)
    assert once.mean_kl > 1e-4
    unit = normalize(direction(), dim=0)
    before, after = own(model, POST, given) @ unit, rows_after(model, given, [swap], POST) @ unit
    torch.testing.assert_close(after, before[[1, 0, 3, 2]], atol=1e-5, rtol=0)


def test_swapping_with_another_run_takes_its_coordinate_only(model):
    other, unit = own(model, POST, tokens(seed=1)), normalize(direction(), dim=0)
    after = rows_after(model, tokens(), [SwapCoordinates(POST, unit, other)], POST)
    torch.testing.assert_close(after @ unit, other @ unit, atol=1e-5, rtol=0)
    rest = after - own(model, POST)
    torch.testing.assert_close(rest, (rest @ unit)[..., None] * unit, atol=1e-5, rtol=0)


def test_several_at_one_hook_act_in_the_order_given_under_either_of_its_names(model):
    add, clear = Add("blocks.0.hook_out", direction(), scale=2.0), ProjectOut(POST, direction())
    cleared = intervene(model, tokens(), clear).logits
    torch.testing.assert_close(intervene(model, tokens(), [add, clear]).logits, cleared, atol=1e-5, rtol=0)
    assert (intervene(model, tokens(), [clear, add]).logits - cleared).abs().max() > 0.1


def test_loss_is_torchs_cross_entropy_of_the_hugging_face_model(model):
    given, mask = tokens(), torch.ones(3, 10, dtype=torch.bool)
    mask[0, 6:] = mask[1, 0] = False
    effect = intervene(model, given, Ablate(POST, "zero"), mask=mask)
    with torch.no_grad():
        logits = gpt2()(given).logits
    expected = cross_entropy(logits[:, :-1].transpose(1, 2), given[:, 1:], reduction="none")
    counts = mask[:, :-1] & mask[:, 1:]
    torch.testing.assert_close(effect.clean_loss[counts], expected[counts], atol=1e-5, rtol=1e-5)
    assert effect.clean_loss[~counts].isnan().all()
    assert effect.mean_clean_loss == pytest.approx(expected[counts].mean().item(), rel=1e-5)
    assert effect.mean_loss != pytest.approx(effect.mean_clean_loss, rel=1e-2)
    assert torch.equal(effect.kl.isnan(), ~mask)


def test_kl_is_torchs_and_zero_only_where_predictions_are_equal(model):
    effect = intervene(model, tokens(), Add(POST, direction(), positions=[5]))
    p, q = effect.clean_logits.double().log_softmax(-1), effect.logits.double().log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(effect.kl.double(), expected, atol=1e-7, rtol=1e-6)
    assert (effect.kl >= 0).all()
    assert torch.equal(effect.kl > 0, (p - q).abs().amax(-1) > 0)
    assert effect.mean_kl == pytest.approx(expected.mean().item(), rel=1e-5)


def test_head_axes_are_flattened_and_rows_on_other_positions_stay(model):
    raw = own(model, HEADS)
    assert raw.shape == (3, 10, 2, 8)
    after = rows_after(model, tokens(), [Add(HEADS, direction(), positions=[2, 7])], HEADS)
    moved = (after - raw.flatten(2)).abs().amax(-1) > 0
    assert moved.nonzero()[:, 1].unique().tolist() == [2, 7]


def test_it_works_under_inference_mode_and_needs_no_gradient(model):
    outside = intervene(model, tokens(), Add(POST, direction())).logits
    with torch.inference_mode():
        assert torch.equal(intervene(model, tokens(), Add(POST, direction())).logits, outside)
    assert not outside.requires_grad
    assert not run(model, tokens()).requires_grad


def fail(_):
    raise RuntimeError("inside")


def test_no_hook_stays_behind_also_after_an_error(model):
    model.bridge.reset_hooks()
    before, clean = hooks_left(model), intervene(model, tokens(), []).clean_logits
    during = []
    intervene(model, tokens(), Replace(POST, lambda rows: (during.append(hooks_left(model)), rows)[1]))
    assert during[0] > before, "hooks are not counted"
    intervene(model, tokens(), [Add(POST, direction()), Patch(HEADS, own(model, HEADS))])
    assert hooks_left(model) == before
    for wrong, error in ((Replace(POST, fail), RuntimeError), (Add(POST, direction(0, 3)), UserError)):
        with pytest.raises(error):
            intervene(model, tokens(), [Add(PRE, direction()), wrong])
        assert hooks_left(model) == before
    assert torch.equal(model.bridge(tokens()), clean)


NAN = torch.full((16,), float("nan"))
REFUSED = {
    r"unknown hook .*did you mean 'blocks.0.hook_resid_post'": lambda: Add("blocks.0.hook_resid_pos", direction()),
    r"not one row a token": lambda: Add("blocks.0.attn.hook_pattern", direction(0, 10)),
    r"does not pass that hook": lambda: Add("blocks.0.attn.qkv.hook_out", direction(0, 48)),
    r"direction is \(3,\), the activations there ask for \(16,\)": lambda: Add(POST, direction(0, 3)),
    r"a direction is \(3,\), the act": lambda: ProjectOut(POST, direction(0, 2, 3)),
    r"activations is \(3, 9, 16\), the act": lambda: Patch(POST, torch.zeros(3, 9, 16)),
    r"value is \(3, 9\), the act": lambda: SetCoordinate(POST, direction(), torch.zeros(3, 9)),
    r"mean is \(4,\), the act": lambda: Ablate(POST, "mean", torch.zeros(4)),
    r"partner is \(2,\), the act": lambda: SwapCoordinates(POST, direction(), torch.tensor([1, 0])),
    r"partner must be a permutation": lambda: SwapCoordinates(POST, direction(), torch.tensor([1, 1, 0])),
    r"what the function returns is \(30, 2\)": lambda: Replace(POST, lambda rows: rows[:, :2]),
    r"direction holds NaN": lambda: Add(POST, NAN),
    r"directions holds NaN": lambda: ProjectOut(POST, NAN),
    r"value holds NaN": lambda: SetCoordinate(POST, direction(), float("nan")),
    r"activations holds NaN": lambda: Patch(POST, NAN.expand(3, 10, 16)),
    r"mean holds NaN": lambda: Ablate(POST, "mean", NAN),
    r"not all zero": lambda: SetCoordinate(POST, torch.zeros(16), 1.0),
    r"nothing to remove": lambda: ProjectOut(POST, torch.zeros(2, 16)),
    r"kind 'median': expected zero, mean or resample": lambda: Ablate(POST, "median"),
    r"a mean row goes with kind mean": lambda: Ablate(POST, "zero", torch.zeros(16)),
    r"position \[10\] is beyond sequences of 10 tokens": lambda: Add(POST, direction(), positions=[3, 10]),
    r"positions are whole numbers from 0": lambda: Add(POST, direction(), positions=[-1]),
    r"its mask is \(3, 9\), the tokens are \(3, 10\)": lambda: Add(POST, direction(), positions=torch.ones(3, 9) > 0),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_done_is_one_line(message, model):
    with pytest.raises(UserError, match=message) as refused:
        intervene(model, tokens(), REFUSED[message]())
    assert "\n" not in str(refused.value)


def test_a_model_that_sees_later_tokens_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.bridge.cfg, "attention_dir", "bidirectional")
    with pytest.raises(UserError, match="is bidirectional: only models that predict the next token"):
        intervene(model, tokens(), [])


def test_tokens_and_masks_that_do_not_fit_are_refused(model):
    with pytest.raises(UserError, match="25 tokens in a row"):
        intervene(model, tokens(1, 25), [])
    with pytest.raises(UserError, match=r"the mask is \(3, 9\)"):
        intervene(model, tokens(), [], mask=torch.ones(3, 9, dtype=torch.bool))
    with pytest.raises(UserError, match="unknown hook"):
        record(model, tokens(), ["blocks.7.hook_resid_post"])


@pytest.mark.slow
@pytest.mark.real_model
def test_on_a_pretrained_model_clean_runs_are_exact_and_patching_gives_the_other_run(real_model):
    model = load_model(str(real_model))
    given, others = (
        model.tokenizer(text, return_tensors="pt").input_ids
        for text in ("The capital of France is Paris", "The capital of Italy is Rome")
    )
    hook = "blocks.14.hook_resid_post"
    assert given.shape == others.shape
    assert not intervene(model, given, Patch(hook, own(model, hook, given))).kl.any()
    patched = intervene(model, given, Patch(hook, own(model, hook, others)))
    assert torch.equal(patched.logits, intervene(model, others, []).clean_logits)
    assert patched.mean_kl > 1e-2
