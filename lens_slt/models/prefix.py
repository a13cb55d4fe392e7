"""Everything about a minibatch that stays frozen while the components move.

Computed once per minibatch (or once per run for probes) and shared by every component and chain:
the residual stream before each block, what each head wrote, and the per-token loss at the given
weights, with which every sampled loss is paired.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lens_slt.models import forward
from lens_slt.models.forward import Architecture, Weights
from lens_slt.models.loss import ReferenceState, unembed_loss

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Batch:
    """Tokens of a minibatch and how much each predicted token counts in the mean loss."""

    tokens: Tensor  # [sequence, position], inputs and targets together
    weight: Tensor  # [sequence, position - 1]; zero on padding and wherever else no loss counts
    reference: ReferenceState | None = None  # set: the loss is the divergence from its predictions

    @property
    def inputs(self) -> Tensor:
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """Predicted tokens ``[N]``; 0 where none counts, as the model may not know such a token."""
        return self.tokens[:, 1:].masked_fill(self.weight == 0, 0).flatten()


@dataclass(frozen=True)
class Prefix:
    """Frozen quantities of one batch. N = sequence × (position − 1) predicted tokens."""

    batch: Batch
    base_loss: Tensor  # [N] per-token loss at the given weights
    resid: dict[int, Tensor]  # block -> residual stream before it [sequence, position, d_model]
    mid: dict[int, Tensor]  # block -> residual stream that its attention output was added to last
    z: dict[int, Tensor]  # block -> head outputs [sequence, head, position, d_head]


def compute_prefix(
    arch: Architecture, weights: Weights, batch: Batch, layers: set[int], *, heads: set[int]
) -> Prefix:
    """Run the frozen model once; keep the stream before ``layers`` and z of ``heads``' layers.

    ``mid[l]`` is the stream after attention where an MLP reads it next, else the one after the
    whole block: in both cases adding the change of a head's output to it is all that is needed.
    """
    kept: dict[int, Tensor] = {}
    mid: dict[int, Tensor] = {}
    z_kept: dict[int, Tensor] = {}
    with torch.no_grad():
        resid = forward.embed(arch, weights, batch.inputs)
        for layer in range(arch.n_layers):
            if layer in layers:
                kept[layer] = resid
            z = forward.head_outputs(arch, weights, layer, resid)
            attn_out = forward.attention_output(weights, layer, z)
            after = forward.finish_block(arch, weights, layer, resid, attn_out)
            if layer in heads:
                z_kept[layer] = z
                mid[layer] = resid + attn_out if has_later_mlp(arch) else after
            resid = after
        x = forward.final_state(arch, weights, resid).flatten(0, 1)
        if arch.n_layers in layers:
            kept[arch.n_layers] = resid
        w_u, b_u = forward.unembedding(arch, weights)
        base, _ = unembed_loss(x, w_u, b_u, batch.targets, reference=batch.reference)
    return Prefix(batch, base, kept, mid, z_kept)


def has_later_mlp(arch: Architecture) -> bool:
    """Whether an MLP in the same block reads what the attention wrote."""
    return not (arch.attn_only or arch.parallel_attn_mlp)


def prefix_bytes(arch: Architecture, n_tokens: int, n_layers_kept: int) -> int:
    """Memory that a prefix keeps, in bytes."""
    per_layer = 2 * arch.d_model + arch.n_heads * arch.d_head
    return n_tokens * n_layers_kept * per_layer * BYTES
