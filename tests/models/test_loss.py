"""Losses against log_softmax in float64, also where probabilities underflow."""

from __future__ import annotations

import pytest
import torch

from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.models.components import parse_components
from lens_slt.models.loss import cross_entropy_, token_cross_entropy
from lens_slt.models.prefix import Batch
from lens_slt.models.suffix import ENGINES, make_groups, prefix_for
from tests.plain_losses import plain_losses
from tests.tiny_models import native

TARGETS = torch.randint(0, 40, (64,), generator=torch.Generator().manual_seed(0))


def logits_of(size: float, seed: int = 1) -> torch.Tensor:
    return size * torch.randn(64, 40, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1.0, 300.0, 3e4, 1e30])
def test_cross_entropy_is_finite_and_right(size):
    exact = logits_of(size).double().requires_grad_()
    expected = -exact.log_softmax(-1).gather(1, TARGETS[:, None]).squeeze(1)
    gradient = torch.autograd.grad(expected.sum(), exact)[0].float()
    overwritten = logits_of(size)
    found = {
        "with gradient": cross_entropy_(overwritten, TARGETS, None),
        "without": token_cross_entropy(logits_of(size), TARGETS, None),
    }
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected.float(), rtol=2e-6, atol=2e-6, msg=name)
    torch.testing.assert_close(overwritten, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 300.0, 3e4])
def test_divergence_where_the_reference_excludes_words(size):
    """Words to which both give no chance at all do not enter: 0·log 0 is 0."""
    both = [logits_of(size), logits_of(1.0, seed=2)]
    for logits in both:
        logits[:, :5] = -float("inf")
    reference = both[1].log_softmax(-1)
    exact = both[0][:, 5:].double().log_softmax(-1)
    log_p = both[1][:, 5:].double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - exact)).sum(-1).float()
    without = token_cross_entropy(both[0].clone(), TARGETS, reference)
    torch.testing.assert_close(without, expected, rtol=1e-5, atol=1e-5)
    gradient = both[0].clone()
    torch.testing.assert_close(cross_entropy_(gradient, TARGETS, reference), without)
    torch.testing.assert_close(gradient, both[0].softmax(-1) - reference.exp())


def loud(size: float) -> torch.nn.Module:
    model = native(normalization_type=None, n_layers=1)
    with torch.no_grad():
        leaves = adapt(model).leaves
        leaves["unembed.W_U"].parameter.mul_(size)
    return model


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_large_logits_have_finite_losses_and_gradients(engine, size):
    """The best word at the given weights may have probability 0 where the weights have moved."""
    model = adapt(loud(size))
    tokens = torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(0))
    weight = torch.full((8, 15), 1 / 120)
    weights = copy_weights(model)
    (group,) = make_groups(model, weights, parse_components("L0H1", model), engine)
    prefix = prefix_for(model, weights, [group], Batch(tokens, weight))
    star = group.suffix.star()
    noise = torch.randn(star.shape, generator=torch.Generator().manual_seed(1))
    v = (star + 0.5 * noise)[:, None]
    loss, grad = group.suffix.losses(v, prefix, gradient=True, chunk=50)
    expected, gradient = plain_losses(lambda: loud(size), tokens, "L0H1", v[0, 0], weight)
    assert expected.max() > size  # far beyond where float32 has probabilities
    torch.testing.assert_close(loss[0, 0].double(), expected.flatten(), rtol=1e-5, atol=1e-6 * size)
    assert grad is not None
    assert (grad[0, 0] - gradient).abs().max() < 1e-4 * gradient.abs().max()
