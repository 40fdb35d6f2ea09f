"""A step through blocks is what the whole model does at that position."""

import pytest
import torch

from toolkit.block_step import BlockStep
from toolkit.downstream import LanguageDownstream
from toolkit.errors import UserError
from toolkit.interaction_basis import jacobians
from toolkit.language import load_model

TOKENS = torch.randint(0, 4_000, (2, 9), generator=torch.Generator().manual_seed(0))
PLACES = torch.tensor([[0, 1], [0, 8], [1, 3], [1, 0]])
AT = torch.arange(4)


@pytest.fixture(scope="module")
def model():
    return load_model()


def whole(model, hook, later, rows):
    """The later hook at the places, each from a whole run with one row written over."""
    found = []
    for (sequence, position), row in zip(PLACES.tolist(), rows, strict=True):
        seen = {}

        def put(value, hook, position=position, row=row):
            value = value.clone()
            value[0, position] = row
            return value

        hooks = [(hook, put), (later, lambda value, hook, seen=seen: seen.update(value=value.detach()))]
        model.bridge.run_with_hooks(TOKENS[sequence : sequence + 1], fwd_hooks=hooks)
        found.append(seen["value"][0, position])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("hook", "later"),
    [
        ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post"),
        ("blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"),
        ("blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"),
        ("blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"),
    ],
)
def test_a_step_is_what_the_whole_model_does(model, hook, later):
    step = BlockStep(model, hook, later, TOKENS, PLACES)
    torch.testing.assert_close(step(step.activations, AT), step.reached, rtol=1e-4, atol=1e-4)
    moved = step.activations + torch.randn(step.activations.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(step(moved, AT), whole(model, hook, later, moved), rtol=1e-4, atol=1e-4)
    assert (step(moved, AT) - step.reached).abs().max() > 0.1
    again = torch.tensor([2, 2, 0])
    torch.testing.assert_close(step(moved[again], again), step(moved, AT)[again], rtol=1e-4, atol=1e-4)


def test_its_jacobian_is_a_finite_difference(model):
    step = BlockStep(model, "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post", TOKENS, PLACES)
    found = jacobians(lambda rows: step(rows, AT), step.activations)
    way = torch.randn(4, 128, generator=torch.Generator().manual_seed(2))
    difference = (step(step.activations + 0.05 * way, AT) - step(step.activations - 0.05 * way, AT)) / 0.1
    torch.testing.assert_close(torch.einsum("rij,rj->ri", found, way), difference, rtol=0.02, atol=0.02)


def test_the_rest_from_the_same_hook_is_left_as_it_was(model):
    rest = LanguageDownstream(model, "blocks.1.hook_resid_post", TOKENS, PLACES)
    before = rest(rest.activations, AT)
    BlockStep(model, "blocks.1.hook_resid_post", "blocks.2.hook_resid_post", TOKENS, PLACES)
    assert torch.equal(rest(rest.activations, AT), before)


def test_hooks_in_the_wrong_order_are_refused(model):
    with pytest.raises(UserError, match=r"cannot be run from blocks\.2\S+ to blocks\.1\S+ alone"):
        BlockStep(model, "blocks.2.hook_resid_post", "blocks.1.hook_resid_post", TOKENS, PLACES)


@pytest.mark.parametrize("place", [[0, 99], [-1, 0]])
def test_places_that_the_sequences_do_not_have_are_one_line(place):
    tokens = torch.arange(1, 13).view(1, 12)
    with pytest.raises(UserError, match=r"places must be \(n, 2\) sequences and positions within \(1, 12\)"):
        BlockStep(load_model(), "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", tokens, torch.tensor([place]))
