"""What nodes write to the residual stream and read from it, as matrices of their weights alone.

Norms before what reads are folded in. Only d_model × d_model products are kept of MLPs and
embeddings: nothing else enters a composition score or its nulls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lens_slt.arrays import FloatArray
from lens_slt.circuits.hypothesis import THROUGH
from lens_slt.models.adapter import AdaptedModel, copy_weights, random_tokens
from lens_slt.models.components import node_names
from lens_slt.models.names import EMBEDDINGS, is_head, layer_of
from lens_slt.models.norms import fold, norm_weight
from lens_slt.models.stream import Stream

if TYPE_CHECKING:
    from transformer_lens import FactoredMatrix

MATRICES = {"embed": "embed.W_E", "pos_embed": "pos_embed.W_pos"}


@dataclass(frozen=True)
class HeadMatrices:
    """A matrix of every head, d_model × d_model of rank d_head, as what is left of it on each side.

    Lists run over layers. ``read`` is [head, d_model, d_head], U·S of its singular value
    decomposition: what remains when something is multiplied from the left, up to a rotation.
    ``written`` is [head, d_head, d_model], S·Vᵀ; ``sizes`` are the singular values.
    """

    read: list[Tensor]
    written: list[Tensor]
    sizes: list[Tensor]

    @classmethod
    def of(cls, matrices: list[FactoredMatrix]) -> HeadMatrices:
        return cls(
            [matrix.collapse_r() for matrix in matrices],
            [matrix.collapse_l() for matrix in matrices],
            [matrix.S for matrix in matrices],
        )

    def shares(self) -> FloatArray:
        """Shares of the squared singular values, ``[head of any layer, d_head]``."""
        squared = torch.cat(self.sizes).double().cpu().numpy() ** 2
        with np.errstate(invalid="ignore"):  # a head of zeros has none
            return squared / squared.sum(-1, keepdims=True)

    def products(self, layer: int, *, written: bool) -> Tensor:
        """What :class:`Other` has of a node, of each head of a layer: ``[head, d_model²]``."""
        parts = self.written[layer] if written else self.read[layer].transpose(-2, -1)
        return torch.stack([_product(part) for part in parts]).flatten(1)


def stream_of(adapted: AdaptedModel) -> Stream:
    """The residual stream on tokens that no caller sees."""
    return Stream(adapted, random_tokens(adapted))


def head_matrices(adapted: AdaptedModel, stream: Stream) -> dict[str, HeadMatrices]:
    """The matrices of all heads that a source meets, by what it is read through; V is W_OV."""
    from transformer_lens import FactoredMatrix

    weights = copy_weights(adapted)
    group = adapted.n_heads // adapted.n_key_value_heads
    qk, ov = [], []
    for layer in range(adapted.n_layers):
        name = f"blocks.{layer}.attn"
        stream.factor(layer)
        scale, centres = norm_weight(stream.norm(layer), weights[f"{name}.W_Q"][0, :, 0])
        q, k, v = (fold(weights[f"{name}.W_{part}"], scale, centres) for part in THROUGH)
        q, k = (_inner_norm(adapted, layer, part, x) for part, x in (("Q", q), ("K", k)))
        k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))
        qk.append(FactoredMatrix(q, k.transpose(-2, -1)))
        ov.append(FactoredMatrix(v, weights[f"{name}.W_O"]))
    return {
        "Q": HeadMatrices.of(qk),
        "K": HeadMatrices.of([m.T for m in qk]),
        "V": HeadMatrices.of(ov),
    }


def _inner_norm(adapted: AdaptedModel, layer: int, through: str, matrix: Tensor) -> Tensor:
    """W_Q or W_K ``[head, d_model, d_head]`` with the norm of queries or keys folded in."""
    inner = [
        name for name in adapted.leaves
        if name.startswith(f"blocks.{layer}.") and "attn" in name and "norm" in name
    ]  # fmt: skip
    if not inner:
        return matrix
    norm = adapted.module.blocks[layer].attn._modules.get(f"{through.lower()}_norm")
    try:
        assert norm is not None
        assert sum(p.numel() for p in norm.parameters()) <= 2 * adapted.d_head  # one for all heads
        scale, centres = norm_weight(norm, matrix[0, 0])
    except Exception:  # over all heads at once (OLMo 2), or of another name
        raise ValueError(
            f"model: the norm of queries and keys of {adapted.name} ({inner[0]}) is not one of "
            "each head, so composition scores cannot fold it in; ablate paths instead"
        ) from None
    folded = matrix - matrix.mean(-1, keepdim=True) if centres else matrix
    return folded * scale


@dataclass(frozen=True)
class Other:
    """A node that is no head, by products of its weights, ``[d_model, d_model]`` of trace 1.

    ``written`` is Wᵀ·W of what it writes, ``read`` W·Wᵀ of what it reads with, None where it reads
    nothing. The squared score of a pair is the sum over the products of their entries.
    """

    name: str
    written: Tensor
    read: Tensor | None
    n_written: int  # neurons, tokens or positions that it writes from
    n_read: int  # columns that it reads with
    beside_heads: bool = False  # it does not read the heads of its own layer

    @classmethod
    def of(cls, adapted: AdaptedModel, stream: Stream, name: str) -> Other:
        """Raises ValueError for an MLP or embedding that is not added to the stream as it is."""
        stream.written_by(name)
        if name in EMBEDDINGS:
            written = _weight(adapted, MATRICES[name])
            return cls(name, _product(written), None, len(written), 0)
        layer = layer_of(name)
        out = _weight(adapted, f"blocks.{layer}.mlp.W_out")
        reader = stream.mlp_reader(layer)
        parts = [
            _weight(adapted, f"blocks.{layer}.mlp.{part}") for part in ("W_in", "W_gate")
            if f"blocks.{layer}.mlp.{part}" in adapted.leaves
        ]  # fmt: skip
        matrix = torch.cat(parts, -1)
        scale, centres = norm_weight(reader.norm, matrix[:, 0])
        read = _product(fold(matrix, scale, centres).T)
        return cls(name, _product(out), read, len(out), matrix.shape[1], reader.beside_heads)

    def power_sums(self, *, written: bool) -> FloatArray:
        """Sums of the first three powers of the shares of its squared singular values."""
        product = self.written if written else self.read
        assert product is not None
        twice = product @ product
        sums = [product.trace(), twice.trace(), (twice * product).sum()]
        return np.array([float(one) for one in sums])


def others(
    adapted: AdaptedModel, stream: Stream, *, embeddings: bool
) -> tuple[list[Other], dict[str, str]]:
    """MLPs and embeddings along the stream, and why some are left out, by name."""
    found: list[Other] = []
    left_out: dict[str, str] = {}
    for name in node_names(adapted, embeddings=embeddings):
        if is_head(name):
            continue
        try:
            found.append(Other.of(adapted, stream, name))
        except ValueError as error:
            left_out[name] = str(error)
    return found, left_out


def _product(matrix: Tensor) -> Tensor:
    """Wᵀ·W of ``[…, d_model]``, divided by its trace."""
    product = matrix.T @ matrix
    return product / product.trace()


def _weight(adapted: AdaptedModel, name: str) -> Tensor:
    leaf = adapted.leaves[name]
    return leaf.view(leaf.parameter.detach())
