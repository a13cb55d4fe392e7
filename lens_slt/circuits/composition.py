r"""Which nodes are wired together: composition scores against two nulls, from the weights alone.

Elhage et al. 2021, A Mathematical Framework for Transformer Circuits: how much of what a source
head writes, W_OV = W_V·W_O, a later target head reads through its queries, keys or values,

.. math:: ‖W_{OV}^{source} M^{target}‖_F / (‖W_{OV}^{source}‖_F ‖M^{target}‖_F),

with M = W_QK for Q, its transpose for K, W_OV for V. It is TransformerLens's
``all_composition_scores``, with the norms before the heads folded into what the heads read.
An MLP writes W_out and reads with M = W_in, a gated one with W_in and W_gate side by side, [W_in,
W_gate]: what either of them reads counts, by its size. An embedding writes W_E, or W_pos. What the
nonlinearity makes of it is not asked: a score says what can be heard, not what is done with it.

A bare score says little: the chance level of the squared score is 1/d_model, and nodes whose
singular values are concentrated scatter more around it (:mod:`lens_slt.circuits.composition_nulls`
has the moments). Against a million sampled rotations of heads of a shipped model (d_model 128) the
p-values are within 7 % of the true ones at 0.001 and within 25 % at 1e-4; below 1e-5 read them as
"very small". With few dimensions (16) they are up to twice too large at 1e-4, never much too small.
A fit of two moments gives p-values five times too small there, a normal distribution hundreds of
times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens_slt.arguments import integer, typed
from lens_slt.arrays import FloatArray
from lens_slt.circuits import composition_nulls as nulls
from lens_slt.circuits.composition_weights import (
    HeadMatrices,
    Other,
    head_matrices,
    others,
    stream_of,
)
from lens_slt.circuits.hypothesis import MLP_INPUT, THROUGH, Edge
from lens_slt.models.adapter import AdaptedModel, adapt
from lens_slt.models.components import head_names, node_names
from lens_slt.models.names import depth_of, head_name, head_place
from lens_slt.schema import stamped
from lens_slt.statistics import false_discovery
from lens_slt.torch_state import plain_torch

NULLS = ("random", "rotation")
DIMS = ("source", "target", "through")


@typed
@plain_torch
def composition_scores(
    model: Any, *, n_null: int = 200, seed: int = 0, embeddings: bool = False
) -> xr.Dataset:
    """Composition scores of all pairs of nodes, how unusual they are, and after how many looks.

    Nodes are heads and MLPs. The norm before each is folded into W_Q, W_K, W_V, W_in and W_gate for
    the computation (the model is not touched): its weight multiplied in, and the mean over d_model
    taken out where the norm takes it out. Under grouped-query attention the keys and values of a
    head are those of its group. Norms of each head's queries and keys are folded in likewise.
    Models whose heads are not wired by these matrices alone are refused (norms after the
    attention); MLPs that are not have no scores.

    Args:
        model: a HookedTransformer or TransformerBridge.
        n_null: matrices of normal random numbers whose singular values stand for those of heads
            under the null ``random``; MLPs, and the null ``rotation``, need none.
        seed: of these.
        embeddings: whether W_E, and learned positions that are added to it, are sources as well.

    Returns:
        Dataset over (source, target, through), NaN where the source is not before the target along
        the residual stream: ``score``; ``z_random``, ``p_random``, ``q_random`` against nodes of
        normal random weights of the same shapes (is there any composition?), ``z_rotation``,
        ``p_rotation``, ``q_rotation`` against the same two nodes, the residual stream between them
        rotated at random, both spectra kept (is it more than their spectra make likely?). z is in
        standard deviations of the squared score; p is the chance of a higher score; q is p after
        Benjamini–Hochberg over all entries. Heads read through Q, K and V; where there are MLPs,
        they read through ``""``. The attribute ``left_out`` names MLPs and embeddings without
        scores, and says why.

    Raises:
        TypeError, ValueError: no such model (as :func:`lens_slt.sample`); bad arguments.

    Example:
        >>> import lens_slt as ls
        >>> found = ls.composition_scores(ls.load_model("attn-2l"), n_null=20)
        >>> found["score"].sel(target="L1H2", through="K").idxmax("source").item()
        'L0H2'
    """
    integer("n_null", n_null, at_least=2)
    integer("seed", seed, at_least=0)
    adapted = adapt(model)
    stream = stream_of(adapted)
    heads = head_matrices(adapted, stream)
    rest, left_out = others(adapted, stream, embeddings=embeddings)
    pairs = _Pairs(
        adapted, heads, rest, node_names(adapted, embeddings=embeddings), node_names(adapted)
    )
    score = pairs.scores()
    random = pairs.random_null(n_null, seed)
    by_null = dict(zip(NULLS, (random, pairs.rotation_null()), strict=True))
    found: dict[str, tuple[tuple[str, ...], FloatArray]] = {"score": (DIMS, score)}
    for null in NULLS:
        z, p = nulls.against(score**2, nulls.cumulants(*by_null[null], adapted.d_model))
        for name, value in (("z", z), ("p", p), ("q", false_discovery(p))):
            found[f"{name}_{null}"] = (DIMS, value)
    scores = xr.Dataset(
        found,
        coords={"source": pairs.sources, "target": pairs.targets, "through": pairs.through},
        attrs={
            "chance_score": adapted.d_model**-0.5,
            "n_scores": int(np.isfinite(score).sum()),
            "n_null": n_null,
            "seed": seed,
            "left_out": "; ".join(f"{node}: {why}" for node, why in left_out.items()),
        },
    )
    return stamped(scores, "composition_scores")


@typed
@plain_torch
def composition_by_component(
    model: Any, source: str, target: str, through: str, *, n: int | None = None
) -> xr.Dataset:
    """Which singular directions of what the source writes the target reads.

    Args:
        model: a HookedTransformer or TransformerBridge.
        source, target: heads, the source in an earlier layer.
        through: ``Q``, ``K`` or ``V`` of the target.
        n: leading directions to return; all (d_head) by default.

    Returns:
        Dataset over direction, from the largest singular value of the source's W_OV on:
        ``singular_value``; ``squared_score``, which adds up to the squared composition score, and
        ``expected_squared_score`` with a random rotation between the heads; ``share`` of the
        squared score, and ``expected_share``, that of the squared singular values.

    Raises:
        ValueError: heads that the model does not have, or no such edge; bad ``n``.

    Example:
        >>> import lens_slt as ls
        >>> found = ls.composition_by_component(ls.load_model("attn-2l"), "L0H2", "L1H2", "K", n=4)
        >>> found["share"].dims, found.sizes["direction"]
        (('direction',), 4)
    """
    adapted = adapt(model)
    edge = Edge(source, target, through)  # checks the order of the layers, and through
    for role, name in (("source", source), ("target", target)):
        _check_head(adapted, role, name)
    n = adapted.d_head if n is None else n
    integer("n", n, at_least=1, at_most=adapted.d_head, note="d_head")
    reads = head_matrices(adapted, stream_of(adapted))
    (i, h), (j, k) = head_place(edge.source), head_place(edge.target)
    written = reads["V"].written[i][h]  # [direction, d_model]
    read = reads[edge.through].read[j][k]
    squared = (written @ read).pow(2).sum(-1).double().cpu().numpy()
    size = reads["V"].sizes[i][h].double().cpu().numpy()
    squared /= (size**2).sum() * float(read.pow(2).sum())
    share = size**2 / (size**2).sum()
    found = xr.Dataset(
        {
            "singular_value": ("direction", size[:n]),
            "squared_score": ("direction", squared[:n]),
            "expected_squared_score": ("direction", share[:n] / adapted.d_model),
            "share": ("direction", (squared / squared.sum())[:n]),
            "expected_share": ("direction", share[:n]),
        },
        coords={"direction": np.arange(1, n + 1)},
        attrs={"edge": str(edge), "score": float(np.sqrt(squared.sum()))},
    )
    return stamped(found, "composition_by_component")


@dataclass(frozen=True)
class _Pairs:
    """All pairs of nodes; arrays are ``[source, target, through]``."""

    adapted: AdaptedModel
    heads: dict[str, HeadMatrices]
    rest: list[Other]  # MLPs and embeddings, along the stream
    sources: list[str]
    targets: list[str]

    @property
    def through(self) -> list[str]:
        return [*THROUGH] if self.adapted.attn_only else [*THROUGH, MLP_INPUT]

    def _at(self, names: list[str], *, source: bool) -> list[int]:
        return [(self.sources if source else self.targets).index(name) for name in names]

    def scores(self) -> FloatArray:
        score = np.full((len(self.sources), len(self.targets), len(self.through)), np.nan)
        heads = head_names(self.adapted)
        rows, columns = self._at(heads, source=True), self._at(heads, source=False)
        score[np.ix_(rows, columns, range(3))] = _head_scores(self.adapted, self.heads)
        if self.rest:
            self._add_rest(score)
        return score

    def _add_rest(self, score: FloatArray) -> None:
        """Scores of MLPs and embeddings, from and to heads and among each other."""
        mlps = [one for one in self.rest if one.read is not None]
        written = torch.stack([one.written.flatten() for one in self.rest])
        read = torch.stack([one.read.flatten() for one in mlps if one.read is not None])
        rows = self._at([one.name for one in self.rest], source=True)
        columns = self._at([one.name for one in mlps], source=False)
        among = _root(written @ read.T)
        for k, mlp in enumerate(mlps):
            before = [i for i, one in enumerate(self.rest) if _stands_before(one.name, mlp)]
            score[[rows[i] for i in before], columns[k], 3] = among[before, k]
        for layer in range(self.adapted.n_layers):
            heads = [head_name(layer, head) for head in range(self.adapted.n_heads)]
            here = self._at(heads, source=True), self._at(heads, source=False)
            behind = [k for k, mlp in enumerate(mlps) if _stands_before(heads[0], mlp)]
            if behind:
                found = _root(self.heads["V"].products(layer, written=True) @ read[behind].T)
                score[np.ix_(here[0], [columns[k] for k in behind], [3])] = found[..., None]
            n_before = sum(depth_of(one.name) < depth_of(heads[0]) for one in self.rest)
            for place, through in enumerate(THROUGH if n_before else ()):
                product = self.heads[through].products(layer, written=False)
                found = _root(written[:n_before] @ product.T)
                score[np.ix_(rows[:n_before], here[1], [place])] = found[..., None]

    def random_null(self, n_null: int, seed: int) -> tuple[FloatArray, FloatArray]:
        """Zonal polynomials of random sources and targets, ``[partition, source, target, 1]``."""
        d_model = self.adapted.d_model
        source, target = nulls.random_heads(d_model, self.adapted.d_head, n_null, seed)
        sources = np.repeat(source[:, None], len(self.sources), 1)
        targets = np.repeat(target[:, None], len(self.targets), 1)
        for one in self.rest:
            row = self.sources.index(one.name)
            sources[:, row] = nulls.random_matrix(d_model, one.n_written)
            if one.read is not None:
                column = self.targets.index(one.name)
                targets[:, column] = nulls.random_matrix(d_model, one.n_read)
        return sources[:, :, None, None], targets[:, None, :, None]

    def rotation_null(self) -> tuple[FloatArray, FloatArray]:
        """Zonal polynomials of the shares of these nodes, NaN where they do not read through it."""
        heads = head_names(self.adapted)
        sums = {x: nulls.power_sums(self.heads[x].shares()) for x in THROUGH}
        sources = np.full((3, len(self.sources)), np.nan)
        targets = np.full((3, len(self.targets), len(self.through)), np.nan)
        sources[:, self._at(heads, source=True)] = sums["V"]
        for place, through in enumerate(THROUGH):
            targets[:, self._at(heads, source=False), place] = sums[through]
        for one in self.rest:
            sources[:, self.sources.index(one.name)] = one.power_sums(written=True)
            if one.read is not None:
                targets[:, self.targets.index(one.name), 3] = one.power_sums(written=False)
        return nulls.zonal(sources)[:, :, None, None], nulls.zonal(targets)[:, None]


def _stands_before(source: str, mlp: Other) -> bool:
    """Whether an MLP reads a node: heads of its own layer only where it reads behind them."""
    return depth_of(source) < depth_of(mlp.name) - mlp.beside_heads


def _root(squared: Tensor) -> FloatArray:
    return squared.clamp(min=0).sqrt().double().cpu().numpy()


def _head_scores(adapted: AdaptedModel, matrices: dict[str, HeadMatrices]) -> FloatArray:
    """Scores ``[source, target, through]`` of heads, one product for all heads of two layers.

    TransformerLens's own function would hold every pair of factors at once, 8 GiB for GPT-2.
    """
    n_layers, n_heads = adapted.n_layers, adapted.n_heads
    score = np.full((n_layers, n_heads, n_layers, n_heads, len(THROUGH)), np.nan)
    left = [x / x.norm(dim=(-2, -1), keepdim=True) for x in matrices["V"].written]
    for place, through in enumerate(THROUGH):
        right = [x / x.norm(dim=(-2, -1), keepdim=True) for x in matrices[through].read]
        for j in range(n_layers):
            columns = right[j].transpose(0, 1).flatten(1)  # [d_model, head · d_head]
            for i in range(j):
                product = left[i].flatten(0, 1) @ columns
                parts = product.view(n_heads, adapted.d_head, n_heads, adapted.d_head)
                score[i, :, j, :, place] = parts.norm(dim=(1, 3)).cpu().numpy()
    return score.reshape(n_layers * n_heads, n_layers * n_heads, len(THROUGH))


def _check_head(adapted: AdaptedModel, role: str, name: str) -> None:
    layer, head = head_place(name)
    if layer >= adapted.n_layers or head >= adapted.n_heads:
        raise ValueError(
            f"{role} must be one of L0H0 … {head_name(adapted.n_layers - 1, adapted.n_heads - 1)}; "
            f"got {name!r}"
        )
