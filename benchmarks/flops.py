"""Floating point operations of the matrix products that one step of the sampler needs.

A multiply-add counts as two. Only products are counted, not softmax, exponentials or norms; causal
attention as half of the square. What the gradient does not need (inputs of the sampled head's own
projections, weights of the frozen rest) is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and a minibatch."""

    n_layers: int
    d_model: int
    n_heads: int
    d_vocab: int
    length: int
    batch_size: int
    mlp: bool = False

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_tokens(self) -> int:
        return self.batch_size * (self.length - 1)


def attention(shape: Shape, width: int) -> float:
    """Scores and mixing of heads that are ``width`` wide together; causal."""
    return 2 * shape.n_tokens * (shape.length - 1) * width


def block(shape: Shape) -> float:
    """Forward pass of one whole block."""
    products = 8 * shape.n_tokens * shape.d_model**2 + attention(shape, shape.d_model)
    return products + (16 * shape.n_tokens * shape.d_model**2 if shape.mlp else 0)


def mlp(shape: Shape) -> float:
    """Forward pass of one MLP."""
    return 16 * shape.n_tokens * shape.d_model**2 if shape.mlp else 0.0


def head_step(shape: Shape, layer: int) -> float:
    """Loss and gradient of one version of one head, the shared part of the step left out."""
    t, d, e, v = shape.n_tokens, shape.d_model, shape.d_head, shape.d_vocab
    own = 3 * 2 * (2 * t * d * e) + 3 * attention(shape, e)  # Q, K, V: forward and weight gradient
    if layer == shape.n_layers - 1 and not shape.mlp:
        return own + 3 * (2 * t * e * v) + 2 * (2 * d * e * v) + 2 * (2 * t * d * e)
    own += 3 * (2 * t * d * e) + 2 * mlp(shape)  # W_O: forward and both gradients
    later = shape.n_layers - 1 - layer
    backward = block(shape) + attention(shape, d)  # linear maps once, attention twice
    return own + later * (block(shape) + backward) + 2 * (2 * t * d * v)


def shared_step(shape: Shape) -> float:
    """What a step needs once for all rows: the frozen model's forward pass."""
    return shape.n_layers * block(shape) + 2 * shape.n_tokens * shape.d_model * shape.d_vocab


def table_step(shape: Shape, layers: list[int], rows_per_layer: int) -> float:
    """One step of ``rows_per_layer`` (heads × chains) in every one of ``layers``."""
    return shared_step(shape) + rows_per_layer * sum(head_step(shape, layer) for layer in layers)
