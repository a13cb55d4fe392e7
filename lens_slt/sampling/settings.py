"""The settings of a sampling run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lens_slt.arguments import boolean, choice, integer, number
from lens_slt.sampling.registry import SAMPLERS
from lens_slt.sampling.sampler import Sampler

DRIFT_DTYPES = ("float32", "bfloat16")
DEFAULT_DRAWS = 200  # per chain, where neither draws nor target_se say anything
MOST_EXTENSION = 8  # times the least: how far chains go on that cannot tell yet
PRECISION = 0.05  # relative standard error at which default runs stop
LEAST_TO_TELL = 50  # draws before target_se can be met
MOST_TO_TARGET = 10_000  # draws at which target_se is given up
LEAST_BATCH = 32  # sequences
BATCH_TOKENS = 2048
FLOOR = 0.02  # absolute standard error of λ̂ that always suffices


@dataclass(frozen=True)
class Settings:
    """How the local posterior exp(−n_beta·L_n − (gamma/2)·‖v − v*‖²) is sampled.

    Attributes:
        n_beta: inverse temperature nβ; 0 samples the pure prior (the control).
        gamma: localization γ; the prior of every weight has variance 1/γ around its given value.
        step_size: ε. None: ``lm`` chooses it for every component, 0.8/γ or an integer fraction of
            that (:mod:`lens_slt.sampling.course`); 1e-3, the published value, for ``sgld`` and
            ``rmsprop_sgld``. A number is obeyed by these; ``pcn``, whose step adapts during
            burn-in, and ``importance``, which has none, have no use for it.
        steps_per_draw: k of ``lm``'s ε = 0.8/γ/k, for all components or by component: what would
            else be chosen; the bias is then measured only with ``check_step``. Runs
            with the same k share their noise step by step, so that differences between checkpoints
            are sharper than values (:func:`lens_slt.develop`).
        sampler: ``lm``, ``sgld``, ``rmsprop_sgld``, or an exact reference, ``pcn``/``importance``.
        chains: chains per component.
        draws: draws per chain after burn-in. None: 200, and up to 1600 of components whose
            certificate or standard error (5 %) needs more; with ``target_se`` at most 10 000. Where
            lens_slt chose a step of ε₀/k, k steps make one draw.
        burn_in: steps that no estimate uses, in steps of one draw. None: of ``lm`` as many as relax
            the prior 25-fold, 3.2 relaxation times; eight of these of ``sgld`` and
            ``rmsprop_sgld``; of ``pcn`` a quarter of the draws, at least 50;
            of ``importance`` none.
        thin: probes are evaluated at every thin-th draw.
        batch_size: sequences per minibatch, drawn afresh at every step; at most all. None: 32, or
            as many as hold 2048 tokens, for few tokens cost as much and tell less. ``pcn`` and
            ``importance`` use all sequences.
        antithetic: chains 2i and 2i+1 see opposite noise. The linear part of every per-token loss
            cancels between them; the pair counts as one chain in every standard error.
        drift_dtype: ``bfloat16`` computes the gradient in half precision; the recorded losses stay
            in float32 at the price of a second forward pass.
        target_se: relative standard error of λ̂, such as 0.03: every component stops when it is
            there (or at 0.02 in absolute terms) and certified; ``draws`` is then the most.
        full_loss: record at every draw also the loss on the whole set.
        check_step: measure the bias of λ̂ by a coupled run at half the step, also where the
            certificate does not ask for it.
        seed: everything random is derived from it and from the component's name.

    Example:
        >>> import lens_slt as ls
        >>> settings = ls.Settings(draws=400, seed=1)
        >>> control = settings.but(n_beta=0)
        >>> control.n_beta, control.draws, settings.n_beta
        (0, 400, 30.0)
    """

    n_beta: float = 30.0
    gamma: float = 200.0
    step_size: float | None = None
    steps_per_draw: int | Mapping[str, int] | None = None
    sampler: str = "lm"
    chains: int = 4
    draws: int | None = None
    burn_in: int | None = None
    thin: int = 1
    batch_size: int | None = None
    antithetic: bool = True
    drift_dtype: str = "float32"
    target_se: float | None = None
    full_loss: bool = False
    check_step: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        number("n_beta", self.n_beta, at_least=0)
        number("gamma", self.gamma, above=0)
        if self.step_size is not None:
            number("step_size", self.step_size, above=0)
        choice("sampler", self.sampler, tuple(SAMPLERS))
        self._check_steps_per_draw()
        choice("drift_dtype", self.drift_dtype, DRIFT_DTYPES)
        for name in ("chains", "thin"):
            integer(name, getattr(self, name), at_least=1)
        for name in ("draws", "batch_size"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), at_least=1)
        if self.burn_in is not None:
            integer("burn_in", self.burn_in, at_least=0)
        if self.target_se is not None:
            number("target_se", self.target_se, above=0)
        integer("seed", self.seed, at_least=0)
        for name in ("antithetic", "full_loss", "check_step"):
            boolean(name, getattr(self, name))
        if self.thin > self.least_draws:
            least = f"{self.least_draws} draws that every component gets"
            raise ValueError(f"thin must be at most the {least}; got {self.thin}")
        if self.antithetic and self.chains % 2:
            raise ValueError(
                f"chains must be even when antithetic=True, chains come in pairs; got {self.chains}"
            )

    def _check_steps_per_draw(self) -> None:
        given = self.steps_per_draw
        if given is None:
            return
        if not self.chooses_step:
            raise ValueError(
                f"steps_per_draw divides the step that lm chooses; got {given!r} with "
                f"sampler={self.sampler!r}, step_size={self.step_size!r}: leave one of them out"
            )
        each = given if isinstance(given, Mapping) else {"": given}
        for name, value in each.items():
            integer(f"steps_per_draw[{name!r}]" if name else "steps_per_draw", value, at_least=1)

    def stride_of(self, name: str) -> int | None:
        """Steps of one draw of a component, where they are given."""
        given = self.steps_per_draw
        return given.get(name) if isinstance(given, Mapping) else given

    @property
    def method(self) -> Sampler:
        """The sampler's module."""
        return SAMPLERS[self.sampler]

    @property
    def chooses_step(self) -> bool:
        """Whether the step size is chosen for every component."""
        return self.step_size is None and self.method.CHOOSES_STEP

    @property
    def measures_curvature(self) -> bool:
        """Whether the curvature at the given weights is measured before the first step."""
        # In half precision the differences of gradients are rounding noise.
        return self.chooses_step and self.n_beta > 0 and self.drift_dtype == "float32"

    @property
    def has_certificate(self) -> bool:
        """Whether the coupled virial says something of λ̂'s bias, which a smaller step lowers."""
        return not (self.method.EXACT or self.method.NO_CERTIFICATE or self.n_beta == 0)

    @property
    def epsilon(self) -> float:
        """The step size that is used, or the largest that may be chosen."""
        if self.step_size is not None:
            return self.step_size
        return self.method.default_step_size(self.gamma)

    @property
    def least_draws(self) -> int:
        """Draws that every component gets."""
        if self.draws is None:
            return DEFAULT_DRAWS if self.target_se is None else LEAST_TO_TELL
        return self.draws if self.target_se is None else min(self.draws, LEAST_TO_TELL)

    @property
    def most_draws(self) -> int:
        """Draws at which every component stops."""
        if self.draws is not None:
            return self.draws
        return MOST_EXTENSION * DEFAULT_DRAWS if self.target_se is None else MOST_TO_TARGET

    @property
    def precision(self) -> float:
        """Relative standard error at which a component may stop between those."""
        return PRECISION if self.target_se is None else self.target_se

    @property
    def burn_in_steps(self) -> int:
        """Steps of burn-in, in steps of one draw."""
        if self.burn_in is not None:
            return self.burn_in
        return self.method.default_burn_in(self.gamma, self.epsilon, self.least_draws)

    def for_data(self, n_sequences: int, length: int) -> Settings:
        """With a batch size for this many sequences of ``length`` tokens."""
        if self.batch_size is not None:
            return self
        size = max(LEAST_BATCH, -(-BATCH_TOKENS // length))
        return replace(self, batch_size=min(size, n_sequences))

    def batch(self, n_sequences: int) -> int:
        """Sequences per minibatch, of so many."""
        return min(self.batch_size or LEAST_BATCH, n_sequences)

    def but(self, **changes: float | int | str | bool | Mapping[str, int] | None) -> Settings:
        """The same settings with some changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for records."""
        return asdict(self)
