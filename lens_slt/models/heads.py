"""Loss and gradient of many versions of one layer's heads at once.

Only the sampled heads' own attention and the blocks after them run, forward and backward. Rows are
(head, chain) pairs; they share the minibatch, so their queries, keys and values come from one
matrix product each.

In the last block, where no MLP follows, a head moves the final residual stream in d_head
directions only. With A the unembedding behind the final norm's centring and weights, the logits are
(base·A + z·(W_O·A)) / scale, so the d_model × d_vocab product is done once per token for all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lens_slt.models import forward
from lens_slt.models.forward import Architecture, Weights
from lens_slt.models.loss import chunk_size, token_cross_entropy, unembed_loss
from lens_slt.models.prefix import Prefix, has_later_mlp

# One activation of the rows that run together. Low-rank rows share the product of the final stream
# with the unembedding, so more of them together are cheaper; others only have to fill the device.
CPU_ROW_BYTES = 2**24
CPU_LOW_RANK_ROW_BYTES = 2**26
GPU_ROW_BYTES = 2**29
# A probability whose logarithm is exact: below about 1e-38 float32 loses digits, then all of them.
SURE = 1e-30


@dataclass(frozen=True)
class HeadSuffix:
    """Heads of one layer. Flat order of a head's weights: W_Q, W_K, W_V, W_O."""

    arch: Architecture
    weights: Weights
    layer: int
    heads: tuple[int, ...]

    @property
    def n_parameters(self) -> int:
        return 4 * self.arch.d_model * self.arch.d_head

    @property
    def low_rank(self) -> bool:
        """Whether a head's effect on the logits has rank d_head before the final scale."""
        return self.layer == self.arch.n_layers - 1 and not has_later_mlp(self.arch)

    @property
    def layers_needed(self) -> set[int]:
        return {self.layer, self.arch.n_layers} if self.low_rank else {self.layer}

    @property
    def head_layers_needed(self) -> set[int]:
        return {self.layer}

    def star(self) -> Tensor:
        """The given weights of every head, ``[head, parameter]``."""
        name, group = f"blocks.{self.layer}.attn", self.arch.heads_per_key_value
        rows = []
        for h in self.heads:
            parts = [
                self.weights[f"{name}.W_Q"][h],
                self.weights[f"{name}.W_K"][h // group],
                self.weights[f"{name}.W_V"][h // group],
                self.weights[f"{name}.W_O"][h],
            ]
            rows.append(torch.cat([part.flatten() for part in parts]))
        return torch.stack(rows)

    def of(self, members: tuple[int, ...]) -> HeadSuffix:
        """The same for some of its heads."""
        return replace(self, heads=tuple(self.heads[i] for i in members))

    def losses(
        self, v: Tensor, prefix: Prefix, *, gradient: bool, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Per-token losses ``[head, chain, N]`` at weights ``v [head, chain, parameter]``.

        With ``gradient`` also the gradient of the weighted mean loss, shaped like ``v``.
        """
        if gradient and prefix.batch.reference is not None:
            raise ValueError("gradient: only the next-token loss has one, not a divergence")
        n_heads, n_chains, n_parameters = v.shape
        rows = v.reshape(-1, n_parameters)
        owner = [h for h in self.heads for _ in range(n_chains)]
        run = self._low_rank_rows if self.low_rank else self._suffix_rows
        at_once = self._rows_at_once(prefix)
        loss = v.new_empty(len(rows), len(prefix.base_loss))
        grad = torch.empty_like(rows) if gradient else None
        shared = self._shared(prefix)
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            part_loss, part_grad = run(rows[part], owner[part], prefix, shared, gradient, chunk)
            loss[part] = part_loss
            if grad is not None and part_grad is not None:
                grad[part] = part_grad
        loss = loss.view(n_heads, n_chains, -1)
        return loss, None if grad is None else grad.view_as(v)

    def logits(self, v: Tensor, prefix: Prefix, tokens: Tensor) -> Iterator[Tensor]:
        """Logits ``[token, d_vocab_out]`` of some tokens, head by head and chain by chain."""
        rows = v.flatten(0, 1)
        owner = [h for h in self.heads for _ in range(v.shape[1])]
        at_once, shared = self._rows_at_once(prefix), self._shared(prefix)
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            with torch.no_grad():
                states = self._final(rows[part], owner[part], prefix, shared)
                states = states.view(len(owner[part]), -1, self.arch.d_model)
            for x in states:
                yield forward.unembed(self.arch, self.weights, x[tokens])

    def _final(self, rows: Tensor, owner: list[int], prefix: Prefix, shared: _Shared) -> Tensor:
        """Final states ``[row · N, d_model]`` at these weights of the heads."""
        arch, weights, mid = self.arch, self.weights, prefix.mid[self.layer]
        z, w_o = self._attend(rows, owner, shared)
        removed = {h: torch.mm(*self._star_output(h, prefix)) for h in set(owner)}
        change = z @ w_o - torch.stack([removed[h] for h in owner])
        resid = mid + change.view(len(owner), *mid.shape)
        resid = resid.flatten(0, 1)
        if has_later_mlp(arch):
            resid = resid + forward.mlp_output(arch, weights, self.layer, resid)
        return forward.run_from(arch, weights, self.layer + 1, resid).flatten(0, 1)

    def _shared(self, prefix: Prefix) -> _Shared:
        arch, name = self.arch, f"blocks.{self.layer}.attn"
        x_qk, x_v = forward.attention_inputs(
            arch, self.weights, self.layer, prefix.resid[self.layer]
        )
        group = arch.heads_per_key_value
        q = None
        if group > 1:  # the other heads of the group answer to the sampled keys and values
            w_q, b_q = self.weights[f"{name}.W_Q"], self.weights.get(f"{name}.b_Q")
            q = forward.project(x_qk, w_q, b_q)
        return _Shared(x_qk, x_v, q)

    @cached_property
    def _unembedding(self) -> _CentredUnembedding:
        return _CentredUnembedding.of(self.arch, self.weights)

    def _rows_at_once(self, prefix: Prefix) -> int:
        arch, on_cpu = self.arch, prefix.base_loss.device.type == "cpu"
        if self.low_rank:
            width = arch.heads_per_key_value * arch.d_head
            budget = CPU_LOW_RANK_ROW_BYTES if on_cpu else GPU_ROW_BYTES
        else:
            width = max(arch.d_model, arch.n_heads * arch.d_head)
            budget = CPU_ROW_BYTES if on_cpu else GPU_ROW_BYTES
        row = prefix.base_loss.numel() * width * prefix.base_loss.element_size()
        return max(1, budget // row)

    def _group(self, head: int) -> slice:
        size = self.arch.heads_per_key_value
        first = head // size * size
        return slice(first, first + size)

    def _attend(self, v: Tensor, owner: list[int], shared: _Shared) -> tuple[Tensor, Tensor]:
        """z ``[row, N, group·d_head]`` and W_O ``[row, group·d_head, d_model]`` of every row."""
        arch, name = self.arch, f"blocks.{self.layer}.attn"
        size = arch.d_model * arch.d_head
        w_q, w_k, w_v = (
            v[:, i * size : (i + 1) * size].unflatten(1, (arch.d_model, arch.d_head))
            for i in range(3)
        )
        w_o = v[:, 3 * size :].unflatten(1, (arch.d_head, arch.d_model))
        group = arch.heads_per_key_value
        key_value = [h // group for h in owner]
        q = forward.project(shared.x_qk, w_q, self._bias("b_Q", owner))
        k = forward.project(shared.x_qk, w_k, self._bias("b_K", key_value))
        values = forward.project(shared.x_v, w_v, self._bias("b_V", key_value))
        if shared.q is not None:
            q_rows, w_rows = [], []
            for row, h in enumerate(owner):
                members = self._group(h)
                own = h - members.start
                star_q, star_o = shared.q[:, members], self.weights[f"{name}.W_O"][members]
                q_rows += [*star_q[:, :own].unbind(1), q[:, row], *star_q[:, own + 1 :].unbind(1)]
                w_rows.append(torch.cat([star_o[:own], w_o[row : row + 1], star_o[own + 1 :]]))
            q, w_o = torch.stack(q_rows, dim=1), torch.stack(w_rows).flatten(1, 2)
            k = k.repeat_interleave(group, dim=1)
            values = values.repeat_interleave(group, dim=1)
        z = forward.causal_attention(arch, q, k, values)  # [sequence, row·group, position, d_head]
        n_seq, _, length, d_head = z.shape
        z = z.unflatten(1, (len(owner), group)).permute(1, 0, 3, 2, 4)
        return z.reshape(len(owner), n_seq * length, group * d_head), w_o

    def _bias(self, name: str, index: list[int]) -> Tensor | None:
        bias = self.weights.get(f"blocks.{self.layer}.attn.{name}")
        return None if bias is None else bias[index][:, None, :].transpose(0, 1)

    def _star_output(self, head: int, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """z ``[N, group·d_head]`` and W_O of a head's key/value group at the given weights."""
        members = self._group(head)
        z = prefix.z[self.layer][:, members]
        w_o = self.weights[f"blocks.{self.layer}.attn.W_O"][members]
        return z.transpose(1, 2).flatten(2).flatten(0, 1), w_o.flatten(0, 1)

    def _suffix_rows(
        self,
        rows: Tensor,
        owner: list[int],
        prefix: Prefix,
        shared: _Shared,
        gradient: bool,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        v = rows.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            x = self._final(v, owner, prefix, shared)
        w_u, b_u = forward.unembedding(self.arch, self.weights)
        weight = prefix.batch.weight.flatten().repeat(len(owner)) if gradient else None
        targets = prefix.batch.targets.repeat(len(owner))
        reference = prefix.batch.reference
        if reference is not None:
            reference = reference.repeat(len(owner))
        loss, grads = unembed_loss(
            x, w_u, b_u, targets, reference=reference, weight=weight, chunk=chunk
        )
        loss = loss.view(len(owner), -1)
        if grads is None:
            return loss, None
        return loss, torch.autograd.grad(x, v, grads.x)[0]

    def _low_rank_rows(
        self,
        rows: Tensor,
        owner: list[int],
        prefix: Prefix,
        shared: _Shared,
        gradient: bool,
        chunk: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        v = rows.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            z, w_o = self._attend(v, owner, shared)
        stars = {h: self._star_output(h, prefix) for h in set(owner)}
        with torch.no_grad():
            loss, d_z, d_w_o = _low_rank_losses(
                self.arch,
                self._unembedding,
                z.detach(),
                w_o.detach(),
                owner,
                stars,
                prefix,
                gradient,
                chunk,
            )
        if not gradient:
            return loss, None
        return loss, torch.autograd.grad([z, w_o], v, [d_z, d_w_o])[0]


@dataclass(frozen=True)
class _Shared:
    """What all rows of a layer read: attention inputs, and frozen queries if keys are shared."""

    x_qk: Tensor
    x_v: Tensor
    q: Tensor | None


@dataclass(frozen=True)
class _CentredUnembedding:
    """logits = (x @ a) / scale(x) + constant."""

    a: Tensor  # [d_model, d_vocab]
    constant: Tensor | None  # [d_vocab]

    @classmethod
    def of(cls, arch: Architecture, weights: Weights) -> _CentredUnembedding:
        w_u, b_u = forward.unembedding(arch, weights)
        w, b = weights.get("ln_final.w"), weights.get("ln_final.b")
        a = w_u if w is None or arch.final_norm is None else w[:, None] * w_u
        if arch.final_norm in ("LN", "LNPre"):
            a = a - a.mean(0)
        constant = b_u
        if b is not None and arch.final_norm == "LN":
            constant = b @ w_u if constant is None else constant + b @ w_u
        return cls(a.contiguous(), constant)


def _centre_and_inverse_scale(arch: Architecture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Centred x and 1/scale ``[token, 1]`` of the final norm."""
    if arch.final_norm is None:
        return x, x.new_ones(len(x), 1)
    if arch.final_norm in ("LN", "LNPre"):
        x = x - x.mean(-1, keepdim=True)
    return x, (x.square().mean(-1, keepdim=True) + arch.norm_eps).rsqrt()


def _low_rank_losses(
    arch: Architecture,
    unembed: _CentredUnembedding,
    z: Tensor,
    w_o: Tensor,
    owner: list[int],
    stars: dict[int, tuple[Tensor, Tensor]],
    prefix: Prefix,
    gradient: bool,
    chunk: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses ``[row, N]`` and gradients with respect to z and W_O of every row."""
    a, constant = unembed.a, unembed.constant
    n_rows, n_tokens, _ = z.shape
    final, targets = prefix.resid[arch.n_layers].flatten(0, 1), prefix.batch.targets
    weight, reference = prefix.batch.weight.flatten(), prefix.batch.reference
    m = w_o @ a  # [row, rank, d_vocab]
    m_star = {h: w @ a for h, (_, w) in stars.items()}
    loss, d_z, d_w = z.new_empty(n_rows, n_tokens), torch.empty_like(z), torch.zeros_like(w_o)
    p_best = torch.ones_like(loss)
    d_m = torch.zeros_like(m) if gradient else None
    # Four arrays of logits and two of W_O·A live in cache: of 52 to 416 tokens 104 are best.
    step = chunk or max(32, chunk_size(a.shape[1], z.device, z.element_size()) // 4)
    # Fresh memory costs more than exp(): every large array is allocated once.
    buffers = z.new_empty(4, min(step, n_tokens), a.shape[1])
    for start in range(0, n_tokens, step):
        part = slice(start, min(start + step, n_tokens))
        full, base, logits, p = buffers[:, : part.stop - part.start]
        t, x_full = targets[part, None], final[part]
        torch.mm(x_full, a, out=full)
        # The loss is the target's logit against that of the best word at w*, whose probability
        # hardly ever underflows: softmax is twice as fast as exp() and tells no normaliser.
        _, inverse = _centre_and_inverse_scale(arch, x_full)
        torch.mul(full, inverse, out=logits)
        best = (logits if constant is None else logits.add_(constant)).argmax(-1, keepdim=True)
        log_ref = None if reference is None else reference.log_probs(part)
        for row, h in enumerate(owner):
            z_row, w_row, m_row = z[row, part], w_o[row], m[row]
            if row == 0 or h != owner[row - 1]:  # chains of one head follow each other
                z_h, w_h = stars[h]
                torch.addmm(full, z_h[part], m_star[h], alpha=-1, out=base)
                x_base = torch.addmm(x_full, z_h[part], w_h, alpha=-1)
            x_c, inverse = _centre_and_inverse_scale(arch, torch.addmm(x_base, z_row, w_row))
            torch.mul(base, inverse, out=logits).addmm_(z_row * inverse, m_row)
            if constant is not None:
                logits += constant
            if log_ref is not None:
                loss[row, part] = token_cross_entropy(logits, t[:, 0], log_ref)
                continue
            torch.softmax(logits, -1, out=p)
            loss[row, part] = (logits.gather(1, best) - logits.gather(1, t)).squeeze(1)
            p_best[row, part] = p.gather(1, best).squeeze(1)
            if d_m is None:
                continue
            # d mean loss / d (logit / inverse) = pull·(p − 1ₜ)
            pull = weight[part, None] * inverse
            moved = p @ m_row.T - m_row.T[t[:, 0]]
            d_row = moved * pull
            pulled = z_row * pull
            d_m[row].addmm_(pulled.T, p).index_add_(1, t[:, 0], pulled.T, alpha=-1)
            if arch.final_norm is not None:
                # Mean logit less the target's, before the scale: base's share and the head's.
                excess = p.mul_(base).sum(-1, keepdim=True) - base.gather(1, t)
                excess += (z_row * moved).sum(-1, keepdim=True)
                d_x = x_c * (excess * pull * inverse.square() / -arch.d_model)
                d_row.addmm_(d_x, w_row.T)
                d_w[row].addmm_(z_row.T, d_x)
            d_z[row, part] = d_row
    if d_m is not None:
        d_w += d_m @ a.T
    loss -= p_best.log()
    unsure = p_best < SURE
    for row in unsure.any(1).nonzero()[:, 0].tolist():  # with a normaliser then
        at = unsure[row].nonzero()[:, 0]
        z_h, w_h = stars[owner[row]]
        x = final[at] - z_h[at] @ w_h + z[row, at] @ w_o[row]
        x_c, inverse = _centre_and_inverse_scale(arch, x)
        loss[row, at], _ = unembed_loss(x_c * inverse, a, constant, targets[at], chunk=chunk)
    return loss, d_z, d_w
