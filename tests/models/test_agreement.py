"""What is computed is compared with the model itself, on the caller's own tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lens_slt as ls
from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.models.agreement import MOST_SEQUENCES, agreeing_groups, most_padded
from lens_slt.models.components import parse_components
from lens_slt.models.prefix import Batch
from lens_slt.models.suffix import prefix_for
from lens_slt.sampling.folder import SamplingWarning
from tests.tiny_models import native, wrapped_gpt2

SHORT = ls.Settings(draws=3, burn_in=2, chains=2, batch_size=4)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 49, (6, 20), generator=torch.Generator().manual_seed(0))


def plain_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Of a whole pass."""
    with torch.no_grad():
        scores = model(tokens[:, :-1], return_type="logits").log_softmax(-1)
    return -scores.gather(-1, tokens[:, 1:, None])[..., 0]


def batch_of(tokens: Tensor) -> Batch:
    weight = torch.full((len(tokens), tokens.shape[1] - 1), 1 / tokens[:, 1:].numel())
    return Batch(tokens, weight)


def groups_of(model: nn.Module, tokens: Tensor, components: str, engine: str = "auto") -> Any:
    adapted = adapt(model)
    weights = copy_weights(adapted)
    chosen = parse_components(components, adapted)
    batch = batch_of(tokens)
    adapted, groups = agreeing_groups(adapted, weights, chosen, engine, [batch])
    return adapted, weights, groups, batch


def late_hook(value: Tensor, hook: Any) -> Tensor:
    value = value.clone()
    value[:, 15:, 2] = 0
    return value


def test_a_hook_that_short_tokens_do_not_trigger_is_measured_and_named(tokens: Tensor) -> None:
    model = native()
    plain = plain_losses(model, tokens)
    model.add_hook("blocks.0.attn.hook_z", late_hook)
    with pytest.warns(SamplingWarning, match=r"blocks\.0\.attn.*the hooked model is measured"):
        draws = ls.sample(
            model, tokens, "L1H2", settings=SHORT, probes={"p": tokens}, progress=False
        )
    measured = torch.tensor(draws["probes/p"]["base_loss"].values)
    assert (measured - plain_losses(model, tokens)).abs().max() < 1e-4
    assert (measured - plain).abs().max() > 1e-3
    assert draws["probes/p"].sizes["position"] == 19


def test_torch_hooks_of_a_wrapped_model_count_as_hooks() -> None:
    model = wrapped_gpt2()
    handle = model.original_model.transformer.h[1].mlp.register_forward_hook(
        lambda module, inputs, output: 0.5 * output
    )
    assert "mlp" in adapt(model).why_generic
    handle.remove()
    assert adapt(model).why_generic == ""


class Remembering:
    """Attention of block 1 adds what that of block 0 last put out, as shared values would be."""

    def __init__(self, model: nn.Module) -> None:
        self.last: Tensor | None = None
        model.blocks[0].attn.o.register_forward_hook(self.keep)
        model.blocks[1].attn.o.register_forward_hook(self.add)

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.last = output

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert self.last is not None
        return output + 0.3 * self.last.cos()


def test_blocks_that_read_earlier_ones_are_never_started_alone(tokens: Tensor) -> None:
    model = native()
    Remembering(model)
    adapted, weights, groups, batch = groups_of(model, tokens, "L1H2")
    assert not adapted.restarts
    assert "block 1 on differ from a whole pass" in adapted.why_generic
    prefix = prefix_for(adapted, weights, groups, batch)
    model(tokens.flip(1), return_type="logits")
    loss, _ = groups[0].suffix.losses(groups[0].suffix.star()[None], prefix, gradient=True)
    assert (loss[0, 0].view(6, 19) - plain_losses(model, tokens)).abs().max() < 1e-5


def test_a_mask_that_only_padding_shows_ends_the_fast_path(tokens: Tensor) -> None:
    """The model hides token 49 from later ones, as left-padding tokenizers make it."""
    model = native()

    def hide(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leading = (inputs[0] == 49).cumprod(1)
        return output * (1 - leading)[..., None]

    class Hiding(type(model.embed)):  # type: ignore[misc]
        def forward(self, ids: Tensor) -> Tensor:
            return hide(self, (ids,), super().forward(ids))

    model.embed.__class__ = Hiding
    adapted, *_ = groups_of(model, tokens, "L0H1")
    assert adapted.architecture is not None
    tokens[3, :4] = 49
    adapted, *_ = groups_of(model, tokens, "L0H1")
    assert "on these tokens losses of the fast path differ" in adapted.why_generic
    with pytest.raises(ValueError, match="engine='functional' cannot run this model: on these"):
        groups_of(model, tokens, "L0H1", "functional")


def test_a_model_that_changes_between_passes_is_refused(tokens: Tensor) -> None:
    model = native()
    generator = torch.Generator().manual_seed(0)

    def noise(value: Tensor, hook: Any) -> Tensor:
        return value + 0.1 * torch.randn(value.shape, generator=generator)

    model.add_hook("blocks.1.attn.hook_z", noise)
    with pytest.raises(ValueError, match="two passes over the same tokens differ"):
        groups_of(model, tokens, "L0H1")


def test_sequences_with_padding_are_looked_at_first(tokens: Tensor) -> None:
    adapted = adapt(wrapped_gpt2())
    tokens = tokens.repeat(5, 1)
    tokens[17, 3:] = 49
    weight = torch.ones(30, 19)
    weight[23, :9] = 0
    rows = most_padded(adapted, tokens, weight).tolist()
    assert rows[:2] == [17, 23]
    assert len(rows) == len(set(rows)) == MOST_SEQUENCES


def test_a_replaced_forward_runs_also_where_no_check_sees_what_it_does():
    model = native(attn_only=False, d_vocab=500)
    tokens = torch.randint(400, (24, 10), generator=torch.Generator().manual_seed(0))
    tokens[13, 4] = 444  # a rare token, on none of the sequences that are compared
    embed, seen = model.embed.forward, {}

    def forward(ids, *args, **kwargs):
        seen["rare"] = (ids == 444)[..., None]
        out = embed(ids, *args, **kwargs)
        return torch.where(seen["rare"], 0 * out, out)

    model.embed.__dict__["forward"] = forward  # setting it would reach the wrapped module
    settings = ls.Settings(
        chains=2, draws=2, burn_in=1, batch_size=4, sampler="sgld", step_size=1e-4
    )
    with pytest.warns(UserWarning, match="hooks are attached at embed.forward"):
        draws = ls.sample(
            model, tokens, "L1H0", probes={"p": tokens}, settings=settings, progress=False
        )
    with torch.no_grad():
        logits = model(tokens[:, :-1], return_type="logits")
    want = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    np.testing.assert_allclose(draws["probes/p"]["base_loss"], want, atol=1e-4)
