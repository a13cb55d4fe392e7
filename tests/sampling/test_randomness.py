"""Random numbers are functions of (seed, component, step) and leave the caller's state alone."""

from __future__ import annotations

import torch

from lens_slt.sampling.randomness import chain_noise, chain_uniform, minibatch


def noise(names, chains=4, seed=0, step=0, antithetic=True, n_parameters=2000):
    like = torch.empty(len(names), 1, n_parameters).expand(-1, chains, -1)
    return chain_noise(like, names, seed, step, antithetic)


def test_pairs_are_opposite_and_otherwise_independent():
    x = noise(["L0H0", "L0H1"])
    assert torch.equal(x[:, 0], -x[:, 1]) and torch.equal(x[:, 2], -x[:, 3])
    flat = torch.stack([x[0, 0], x[0, 2], x[1, 0], noise(["L0H0"], step=1)[0, 0]])
    correlation = torch.corrcoef(flat).fill_diagonal_(0)
    assert correlation.abs().max() < 4 / 2000**0.5
    plain = noise(["L0H0"], antithetic=False)[0]
    assert torch.corrcoef(plain).fill_diagonal_(0).abs().max() < 4 / 2000**0.5


def test_a_component_keeps_its_noise_in_other_company():
    assert torch.equal(noise(["L0H0", "L0H1"])[1], noise(["L0H1"])[0])


def test_the_callers_state_is_untouched():
    before = torch.random.get_rng_state()
    noise(["L0H0"])
    minibatch(10, 4, 0, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_component_keeps_its_numbers_in_other_company_when_proposals_are_judged():
    together = chain_uniform(["L0H0", "L0H1"], 4, 0, 3)
    assert torch.equal(together[1], chain_uniform(["L0H1"], 4, 0, 3)[0])
    assert not torch.equal(together[0], together[1])
