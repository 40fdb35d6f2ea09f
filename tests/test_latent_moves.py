"""Moves of latents: L0, totals, values and frequencies kept; SAEs whose decoder is held while the encoder learns."""

import numpy as np
import pytest
import torch

from toolkit.errors import UserError
from toolkit.frozen_decoder import fit_encoder
from toolkit.latent_moves import NEAREST, mass_moved, rates, swapped
from toolkit.metrics import fvu, random_dictionary
from toolkit.sae import SAEConfig
from toolkit.same_norm import isotropic

WIDTH, K, ROWS = 60, 6, 40


def codes(seed=0, rows=ROWS):
    """K latents on in each row, with values of their own."""
    rng = np.random.default_rng(seed)
    z = np.zeros((rows, WIDTH), np.float32)
    for row in z:
        row[rng.permutation(WIDTH)[:K]] = rng.uniform(0.5, 3, K)
    return torch.from_numpy(z)


Z = codes()
RATES = rates([codes(1, 3_000)])


def test_frequencies_are_the_same_whatever_the_blocks():
    z = codes(1, 3_000)
    torch.testing.assert_close(RATES, (z != 0).double().mean(0), rtol=0, atol=0)
    for size in (700, 1_100, 2_000):  # the last block is shorter
        assert torch.equal(rates(z.split(size)), RATES)
    assert torch.equal(rates(part for part in z.split(1_000)), RATES)


def on(z):
    return (z != 0).sum(1)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_mass_moves_among_the_latents_that_are_on(share):
    moved = mass_moved(Z, share=share, seed=0)
    assert torch.equal(moved != 0, Z != 0)
    torch.testing.assert_close(moved.sum(1), Z.sum(1), rtol=1e-6, atol=0)
    assert (moved >= 0).all()
    assert bool(((moved - Z).abs().max(1).values > 0).all())
    torch.testing.assert_close(moved - Z, share * (mass_moved(Z, share=1.0, seed=0) - Z), atol=1e-6, rtol=0)


def test_all_of_the_mass_moved_is_a_cycle_of_the_values():
    moved = mass_moved(Z, share=1.0, seed=0)
    for before, after in zip(Z, moved, strict=True):
        assert sorted(before[before > 0].tolist()) == sorted(after[after > 0].tolist())
        assert bool((before[before > 0] != after[after > 0]).all())
    assert not torch.equal(moved, mass_moved(Z, share=1.0, seed=1))
    cycles = [mass_moved(Z[:1], share=1.0, seed=seed)[0] for seed in range(60)]
    takers = {int((each == Z[0].max()).nonzero()) for each in cycles}
    assert len(takers) == K - 1  # the largest value goes to each of the others at times


def test_a_row_with_one_latent_on_or_none_stays():
    z = torch.zeros(2, WIDTH)
    z[0, 7] = 2
    assert torch.equal(mass_moved(z, share=1.0, seed=0), z)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.3, 2), (0.5, 3), (1.0, K)])
def test_swaps_keep_how_many_are_on_and_their_values(share, count):
    found = swapped(Z, RATES, share=share, seed=0)
    assert torch.equal(on(found.latents), on(Z))
    assert torch.equal(found.latents.sort(1).values, Z.sort(1).values)
    assert bool((((found.latents != 0) & (Z == 0)).sum(1) == count).all())
    assert len(found.left) == len(found.came) == count * ROWS


def test_those_that_come_are_as_frequent_as_those_that_leave():
    tens = torch.arange(WIDTH) // 15  # of each frequency as many as may be on and NEAREST more
    assert K + NEAREST <= 15
    frequency = 0.4 / 10.0 ** tens.double()
    found = swapped(Z, frequency, share=1.0, seed=0)
    exact = swapped(Z, frequency, share=0.01, seed=0)
    assert exact.mismatch == 0
    assert bool((frequency[exact.left] == frequency[exact.came]).all())
    assert found.mismatch < 1
    anyone = torch.from_numpy(np.random.default_rng(0).permutation(WIDTH))
    random = (frequency[anyone[found.left % WIDTH]] / frequency[found.left]).log().abs().mean()
    assert found.mismatch < 0.3 * float(random)


def test_a_latent_that_is_never_on_does_not_come():
    frequency = RATES.clone()
    frequency[10:40] = 0
    assert not set(swapped(Z, frequency, share=1.0, seed=0).came.tolist()) & set(range(10, 40))
    frequency[8:] = 0
    with pytest.raises(UserError, match="take a wider SAE"):
        swapped(Z, frequency, share=1.0, seed=0)


def test_which_leave_and_come_is_drawn():
    first, again, other = (swapped(Z, RATES, share=0.3, seed=seed).latents for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("share", [0.0, 1.5, -0.1])
def test_shares_lie_above_0_and_up_to_1(share):
    for move in (lambda: mass_moved(Z, share=share, seed=0), lambda: swapped(Z, RATES, share=share, seed=0)):
        with pytest.raises(UserError, match=r"in \(0, 1\]"):
            move()


def test_negative_latents_have_no_mass_to_move():
    with pytest.raises(UserError, match="some are negative"):
        mass_moved(-Z, share=0.5, seed=0)


def planted(rows=4_000, d=24, seed=0):
    """Rows of 2 of 16 orthonormal directions of 24, and the directions."""
    rng = np.random.default_rng(seed)
    D = np.linalg.qr(rng.standard_normal((d, d)))[0][:16]
    z = np.zeros((rows, 16))
    for row in z:
        row[rng.permutation(16)[:2]] = rng.uniform(1, 2, 2)
    return torch.from_numpy(z @ D).float(), torch.from_numpy(D).float()


def config(**changed):
    return SAEConfig(**{"architecture": "topk", "width": 16, "k": 2, "steps": 300, "batch": 256, **changed})


def test_moves_along_directions_that_are_read_are_worse_by_what_isotropic_noise_wastes():
    """KL is |projection on the read directions|^2: a move inside them is d/m times isotropic noise of its length."""
    x, D = planted(rows=200)
    read = lambda rows: (rows @ D.mT).square().sum(-1)  # noqa: E731
    z = (x @ D.mT).clamp(min=0) * ((x @ D.mT) > 0.5)
    for latents in (mass_moved(z, share=0.3, seed=0), swapped(z, rates([z]), share=0.5, seed=0).latents):
        for decoder, expected in ((D, 24 / 16), (random_dictionary(16, 24, seed=1), 1.0)):
            step = (latents - z) @ decoder
            noise = isotropic(step.norm(dim=1), 24, draws=200, seed=0)
            assert float(read(step).mean() / read(noise).mean()) == pytest.approx(expected, rel=0.07)


def test_a_decoder_that_is_held_stays_and_its_encoder_learns():
    x, D = planted()
    for directions in (D, random_dictionary(16, 24, seed=3)):
        sae = fit_encoder(3 * x + 1, directions, config(), seed=0)
        assert torch.equal(sae.W_dec[0], directions)
        start = fit_encoder(3 * x + 1, directions, config(steps=1), seed=0)
        errors = [fvu(3 * x + 1, each((3 * x + 1)[None])[0]) for each in (sae, start)]
        assert errors[0] < 0.97 * errors[1]
        assert bool((on(sae.encode((3 * x + 1)[None])[0]) <= 2).all())


def test_the_true_directions_rebuild_and_random_ones_do_not():
    x, D = planted()
    errors = [
        fvu(x, fit_encoder(x, directions, config(lr=5e-3), seed=0)(x[None])[0])
        for directions in (D, random_dictionary(16, 24, seed=3))
    ]
    assert errors[0] < 0.02
    assert errors[1] > 0.4


def test_directions_of_another_shape_or_length_and_tied_saes_are_refused():
    x, D = planted(rows=50)
    with pytest.raises(UserError, match=r"directions must be \(16, 24\), got \(15, 24\)"):
        fit_encoder(x, D[:15], config(), seed=0)
    with pytest.raises(UserError, match="length 1"):
        fit_encoder(x, 2 * D, config(), seed=0)
    with pytest.raises(UserError, match="tied"):
        fit_encoder(x, D, config(tied=True), seed=0)
    with pytest.raises(UserError, match="resampling draws decoder rows anew"):
        fit_encoder(x, D, config(resample=True), seed=0)
