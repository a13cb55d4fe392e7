"""What ablated outputs become, where, and from which tokens of the reference.

Padding never lends a value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lens_slt.arguments import choice, integer
from lens_slt.arrays import BoolArray
from lens_slt.data.columns import moved
from lens_slt.data.patterns import checked_pattern

AUTO = "auto"
HOWS = ("mean", "mean_position", "mean_pattern", "resample", "interchange", "zero")
FEWEST_AT_POSITION = 8  # sequences that a mean at a position is taken over by itself


@dataclass(frozen=True)
class Ablation:
    """What ablated outputs become, and where.

    Attributes:
        how: what replaces an output: its ``mean`` over all tokens of the reference, its mean at
            each position (``mean_position``), its mean over the tokens with a pattern and over
            those without, each for its own (``mean_pattern``), its value on another sequence at the
            same position (``resample``), on the same sequence of a paired reference
            (``interchange``: what does it carry?), or ``zero``. ``auto`` is ``mean_position`` where
            positions matter (they are learned, or only some of them count) and every position has
            at least 8 sequences, else ``mean``.
        reference: tokens ``[sequence, position]`` that these values come from; the tokens
            themselves by default. For ``interchange`` the other prompt of each pair, such as the
            corrupted one.
        pattern: bool ``[sequence, position - 1]``, for ``mean_pattern``.
        positions: where outputs are replaced: bool ``[sequence, position - 1]``, or positions
            ``[sequence]`` or ``[sequence, place]``, such as ``prompts.roles["S2"]``; everywhere by
            default.
        reference_positions: for ``interchange`` where roles stand elsewhere in the reference:
            positions there, shaped like ``positions``.
        frozen_norm: keep the scale of every norm as it is without the ablation, so that the rest of
            the model sees nothing but the missing output.
        seed: of ``resample``.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> how = ls.Ablation("resample", seed=1)
        >>> ls.ablate(model, text, "L1H2", how=how)["effect"].dims
        ('sequence', 'position')
    """

    how: str = "auto"
    reference: Any = None
    pattern: Any = None
    positions: Any = None
    reference_positions: Any = None
    frozen_norm: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        choice("how", self.how, (AUTO, *HOWS))
        integer("seed", self.seed, at_least=0)

    @classmethod
    def of(cls, how: str | Ablation, seed: int = 0) -> Ablation:
        """Itself, or one that is named by its kind, with this seed."""
        return how if isinstance(how, Ablation) else cls(how, seed=seed)

    def moved(self, shift: Tensor, there: Tensor, labels: Callable[[Any], Any]) -> Ablation:
        """In rows that are moved by ``shift [sequence]``, those of the reference by ``there``."""
        if not (shift.any() or there.any()):
            return self
        return replace(
            self,
            pattern=labels(self.pattern),
            positions=moved_places(self.positions, shift),
            reference_positions=moved_places(self.reference_positions, there),
        )

    def resolved(self, reference_real: BoolArray, learned_positions: bool) -> Ablation:
        """With ``auto`` decided; ``reference_real [sequence, position]`` can lend values."""
        if self.how != AUTO:
            return self
        reached = reference_real.sum(0)
        matter = learned_positions or bool((reached == 0).any())
        enough = bool((reached[reached > 0] >= FEWEST_AT_POSITION).all())
        return replace(self, how="mean_position" if matter and enough else "mean")


class Replacements:
    """Values of ablated outputs.

    Args:
        ablation: with ``auto`` decided.
        real, reference_real: bool ``[sequence, position]``: inputs that are no padding.

    Raises ValueError for what does not fit together.
    """

    def __init__(self, ablation: Ablation, real: BoolArray, reference_real: BoolArray) -> None:
        how, positions = ablation.how, ablation.positions
        pattern, reference_positions = ablation.pattern, ablation.reference_positions
        same, seed = ablation.reference is None, ablation.seed
        self.how, self._real, self._reference_real = how, real, reference_real
        paired = how == "interchange"
        if paired and (same or len(reference_real) != len(real)):
            got = "none" if same else f"{len(reference_real)}"
            raise ValueError(
                f"how='interchange' needs reference, one prompt for each of the {len(real)} in "
                f"tokens; got {got}"
            )
        by_role = reference_positions is not None
        if reference_real.shape[1] != real.shape[1] and not by_role:
            raise ValueError(
                f"reference has sequences of {reference_real.shape[1] + 1} tokens, tokens of "
                f"{real.shape[1] + 1}: ablated values are taken position by position, cut both to "
                "one length" + (", or pass positions and reference_positions" if paired else "")
            )
        self.where = places(positions, real, "positions")
        self._pattern = _pattern_of(pattern, real, same) if how == "mean_pattern" else None
        if how == "mean_position":
            _refuse_empty_positions(real, reference_real)
        if how == "resample" and same and len(real) == 1:
            raise ValueError(
                "how='resample' takes values from other sequences, and tokens has only one; pass "
                "more sequences or a reference"
            )
        if how == "resample":
            self._donors = donors(real, reference_real, same, seed)
        if paired:
            self._donors = _pairs(real, reference_real, self.where, positions, reference_positions)

    def value(self, clean: Tensor) -> Tensor:
        """From outputs on the reference ``[sequence, position, width]``; broadcasts to those."""
        if self.how == "zero":
            return torch.zeros_like(clean[:1, :1])
        if self.how in ("resample", "interchange"):
            return clean[self._donors]
        real = torch.from_numpy(self._reference_real).to(clean.device)[..., None].to(clean.dtype)
        if self.how == "mean_position":
            return (clean * real).sum(0, keepdim=True) / real.sum(0, keepdim=True).clamp(min=1)
        if self._pattern is None:
            return ((clean * real).sum((0, 1)) / real.sum())[None, None]
        found = torch.empty_like(clean)
        for member in (True, False):
            chosen = torch.from_numpy(self._pattern == member).to(clean.device)
            weight = chosen[..., None] * real
            mean = (clean * weight).sum((0, 1)) / weight.sum().clamp(min=1)
            found[chosen] = mean
        return found


def moved_places(positions: Any, shift: Tensor, name: str = "positions") -> Any:
    """Positions that a caller passes, where they stand in rows moved by ``shift [sequence]``.

    What is neither bool ``[sequence, position]`` nor positions of these sequences is left as it is,
    to be refused where it is used.
    """
    if positions is None or not shift.any():
        return positions
    given = np.asarray(positions)
    if given.dtype.kind in "iu" and given.size and given.min() < 0:
        return positions
    if given.dtype == bool and given.ndim == 2 and len(given) == len(shift):
        return moved(given, shift)
    if given.dtype.kind not in "iu" or given.ndim not in (1, 2) or len(given) != len(shift):
        return positions
    there = given - shift.numpy().reshape(-1, *[1] * (given.ndim - 1))
    padding = np.argwhere(there < 0)
    if len(padding):
        raise ValueError(
            f"{name}{padding[0].tolist()} is {given[tuple(padding[0])]}, which is padding on "
            f"the left of sequence {padding[0][0]}: positions count in the columns of tokens"
        )
    return there


def context(counts: BoolArray) -> BoolArray:
    """Inputs ``[sequence, position]`` that some prediction which counts can read."""
    return np.maximum.accumulate(counts[:, ::-1], axis=1)[:, ::-1].copy()


def _pattern_of(pattern: Any, real: BoolArray, same: bool) -> BoolArray:
    if pattern is None or not same:
        raise ValueError(
            "how='mean_pattern' needs pattern, labels of tokens, and no other reference"
        )
    return checked_pattern(pattern, real.shape, "pattern")


def places(positions: Any, real: BoolArray, name: str) -> Tensor | None:
    """Bool ``[sequence, position]`` of positions; None for everywhere."""
    if positions is None:
        return None
    given = np.asarray(positions)
    if given.dtype == bool and given.shape == real.shape:
        return torch.from_numpy(given)
    found = np.zeros(real.shape, dtype=bool)
    found[np.arange(len(real))[:, None], _indices(given, real, name)] = True
    behind = np.argwhere(found & ~real)
    if len(behind):
        row, position = behind[0]
        raise ValueError(
            f"{name} has position {position} of sequence {row}, which is padding, or behind all "
            "predictions that count: nothing there has an effect"
        )
    return torch.from_numpy(found)


def _indices(given: np.ndarray, real: BoolArray, name: str) -> np.ndarray:
    """Positions ``[sequence, place]``."""
    n, length = real.shape
    ok = given.dtype.kind in "iu" and given.ndim in (1, 2) and len(given) == n
    if not ok:
        raise ValueError(
            f"{name} must be positions [sequence] or [sequence, place] for {n} sequences, or bool "
            f"{[n, length]}; got {given.dtype} {list(given.shape)}"
        )
    if given.size and (given.min() < 0 or given.max() >= length):
        raise ValueError(
            f"{name} must lie between 0 and {length - 1}, the last that is read; got "
            f"{int(given.min()) if given.min() < 0 else int(given.max())}"
        )
    return given.reshape(n, -1)


def _pairs(
    real: BoolArray, reference_real: BoolArray, where: Tensor | None, positions: Any, there: Any
) -> tuple[Tensor, Tensor]:
    """Sequence and position of the reference for each token: its partner's."""
    rows = torch.arange(len(real))[:, None].expand(real.shape)
    places = torch.arange(real.shape[1]).repeat(len(real), 1)
    wanted = real if where is None else where.numpy()
    if there is not None:
        if positions is None or np.asarray(positions).dtype == bool:
            raise ValueError("reference_positions needs positions, likewise [sequence, place]")
        here = _indices(np.asarray(positions), real, "positions")
        other = _indices(np.asarray(there), reference_real, "reference_positions")
        if here.shape != other.shape:
            raise ValueError(
                f"reference_positions has {other.shape[1]} roles, positions {here.shape[1]}: one "
                "for each"
            )
        places[torch.arange(len(real))[:, None], torch.from_numpy(here)] = torch.from_numpy(other)
    places = places.clamp(max=reference_real.shape[1] - 1)
    lost = wanted & ~reference_real[rows.numpy(), places.numpy()]
    if lost.any():
        row, place = (int(x) for x in np.argwhere(lost)[0])
        raise ValueError(
            f"reference has padding at position {int(places[row, place])} of sequence {row}, which "
            f"stands in for position {place} of tokens: pairs must be of equal length, or pass "
            "positions and reference_positions"
        )
    return rows, places


def _refuse_empty_positions(real: BoolArray, reference_real: BoolArray) -> None:
    empty = np.flatnonzero(real.any(0) & ~reference_real.any(0))
    if len(empty):
        raise ValueError(
            f"reference has nothing but padding at position {empty[0]}, where tokens has losses: "
            "how='mean_position' needs a reference at every position; cut tokens, pass a longer "
            "reference, or use how='mean'"
        )


def donors(
    real: BoolArray, reference_real: BoolArray, same: bool, seed: int
) -> tuple[Tensor, Tensor]:
    """Sequence and position of the reference that stand in for each token, never padding.

    All of a sequence comes from one other sequence, as far as that is no padding there; the rest
    from others at the same position, or from anywhere in others where no other is that long.
    """
    n, n_reference = len(real), len(reference_real)
    generator = torch.Generator().manual_seed(seed)
    if same:
        order = torch.randperm(n, generator=generator)
        rows = torch.empty(n, dtype=torch.long)
        rows[order] = order.roll(1)
    else:
        rows = torch.randint(n_reference, (n,), generator=generator)
    chosen = rows[:, None].repeat(1, real.shape[1])
    places = torch.arange(real.shape[1]).repeat(n, 1)
    pick = np.random.default_rng(seed)
    for row, place in zip(*np.nonzero(real & ~reference_real[rows.numpy()]), strict=True):
        there = np.flatnonzero(reference_real[:, place])
        there = there[there != row] if same else there
        if len(there):
            chosen[row, place] = int(pick.choice(there))
            continue
        rest = np.flatnonzero(reference_real)
        rest = rest[rest // real.shape[1] != row] if same else rest
        if len(rest):
            chosen[row, place], places[row, place] = divmod(int(pick.choice(rest)), real.shape[1])
        else:  # a single sequence: there is nothing else
            chosen[row, place] = int(row)
    return chosen, places
