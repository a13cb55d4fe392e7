"""What heads write, in logits and as a share of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.models.adapter import copy_weights
from lens_slt.models.norms import MeasuredNorm, fold, norm_weight
from lens_slt.models.stream import Stream


@dataclass(frozen=True)
class Writes:
    """What turns what the heads write into logits."""

    w_o: Tensor  # what is added to the stream of z, [component, d_head, d_model]
    unembedding: Tensor  # centred over the vocabulary, last norm folded in, [d_model, d_vocab]
    final_norm: MeasuredNorm | None

    @classmethod
    def of(cls, stream: Stream) -> Writes:
        adapted, weights = stream.adapted, copy_weights(stream.adapted)
        w_u = weights.get("unembed.W_U", weights["embed.W_E"].T)
        norm = stream.final_norm
        folded = w_u - w_u.mean(-1, keepdim=True)
        if norm is not None:
            folded = fold(folded, norm.weight, norm.centres)
        w_o = [
            stream.factor(layer) * weights[f"blocks.{layer}.attn.W_O"]
            for layer in range(adapted.n_layers)
        ]
        return cls(torch.cat(w_o), stream.logit_factor * folded, norm)

    def to_next_token(self, z: Tensor, final: Tensor, tokens: Tensor) -> Tensor:
        """Direct contributions to the next token's logit, ``[component, sequence, position-1]``.

        ``z [component, sequence, position, d_head]`` and the last stream ``final`` are those of
        ``tokens``.
        """
        towards = self.unembedding.T[tokens[:, 1:]] / self._size(final[:, :-1])
        directions = torch.einsum("spd,ced->cspe", towards, self.w_o)
        return (directions * z[:, :, :-1]).sum(-1)

    def share(self, z: Tensor, spread: Tensor) -> Tensor:
        """RMS of what each head adds to the stream beyond its mean, over that of the stream.

        ``z`` is ``[component, token, d_head]``, of the tokens that are no padding; ``spread
        [layer]`` their mean square of the stream before each layer: where it grows with depth,
        everything that early layers write is little beside the last one.
        """
        z = z - z.mean(1, keepdim=True)
        gram = self.w_o @ self.w_o.transpose(-2, -1)
        added = (torch.einsum("cte,cef->ctf", z, gram) * z).sum(-1).mean(1)
        stream = spread.repeat_interleave(len(z) // len(spread))
        return (added.clamp(min=0) / stream).sqrt()

    def _size(self, final: Tensor) -> Tensor:
        """What the last norm divides by, ``[sequence, position, 1]``, in units of its weight."""
        if self.final_norm is None:
            return torch.ones_like(final[..., :1])
        with torch.no_grad():
            return self.final_norm.scale(final, self.final_norm.module(final))


def writes_of(stream: Stream) -> tuple[Writes | None, str]:
    """What turns what heads write into logits, or why there is no such thing."""
    try:
        return Writes.of(stream), ""
    except ValueError as error:
        return None, str(error)


def copying(stream: Stream, writes: Writes) -> FloatArray:
    """Σλ/Σ|λ| of every head's W_E·W_V·W_O·W_U."""
    from transformer_lens import FactoredMatrix

    adapted = stream.adapted
    weights = copy_weights(adapted)
    around = writes.unembedding @ weights["embed.W_E"]  # [d_model, d_model]
    group = adapted.n_heads // adapted.n_key_value_heads
    found = []
    for layer in range(adapted.n_layers):
        name = f"blocks.{layer}.attn"
        norm = norm_weight(stream.norm(layer), around[0])
        w_v = fold(weights[f"{name}.W_V"], *norm).repeat_interleave(group, dim=0)
        # The same eigenvalues as W_E·W_V·W_O·W_U, without a matrix over the vocabulary.
        values = FactoredMatrix(around @ w_v, weights[f"{name}.W_O"]).eigenvalues
        found.append(values.real.sum(-1) / values.abs().sum(-1))
    return array_of(torch.cat(found))


def array_of(tensor: Tensor) -> FloatArray:
    """Float64 on the CPU."""
    return tensor.double().cpu().numpy()
