"""The settings of a sampling run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from lens_slt.arguments import choice, integer, number

SAMPLERS = ("lm", "sgld", "rmsprop_sgld", "pcn", "importance")
EXACT_SAMPLERS = ("pcn", "importance")
DRIFT_DTYPES = ("float32", "bfloat16")
LM_STEP_TIMES_GAMMA = 0.8
BURN_IN_RELAXATIONS = 8  # e-foldings of the prior's relaxation before the first draw


@dataclass(frozen=True)
class Settings:
    """How the local posterior exp(−n_beta·L_n − (gamma/2)·‖v − v*‖²) is sampled.

    Attributes:
        n_beta: inverse temperature nβ; 0 samples the pure prior (the control).
        gamma: localization γ; the prior of every weight has variance 1/γ around its given value.
        step_size: ε. None ties it to γ: 0.8/γ for ``lm``, where that is safe because the rule is
            exact on the Gaussian part; 1e-3, the published value, for ``sgld`` and
            ``rmsprop_sgld``; the step of ``pcn`` adapts during burn-in.
        sampler: ``lm``, ``sgld``, ``rmsprop_sgld``, or an exact reference, ``pcn``/``importance``.
        chains: chains per component.
        draws: draws per chain after burn-in; the paired loss is recorded at every one.
        burn_in: steps that no estimate uses. None: eight relaxation times of the prior.
        thin: probes are evaluated at every thin-th draw.
        batch_size: sequences per minibatch. ``pcn`` and ``importance`` use all sequences.
        antithetic: chains 2i and 2i+1 see opposite noise. The linear part of every per-token loss
            cancels between them; the pair counts as one chain in every standard error.
        drift_dtype: ``bfloat16`` computes the gradient in half precision; the recorded losses stay
            in float32 at the price of a second forward pass.
        seed: everything random is derived from it and from the component's name.
    """

    n_beta: float = 30.0
    gamma: float = 200.0
    step_size: float | None = None
    sampler: str = "lm"
    chains: int = 4
    draws: int = 200
    burn_in: int | None = None
    thin: int = 1
    batch_size: int = 32
    antithetic: bool = True
    drift_dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        number("n_beta", self.n_beta, at_least=0)
        number("gamma", self.gamma, above=0)
        if self.step_size is not None:
            number("step_size", self.step_size, above=0)
        choice("sampler", self.sampler, SAMPLERS)
        choice("drift_dtype", self.drift_dtype, DRIFT_DTYPES)
        for name in ("chains", "draws", "thin", "batch_size"):
            integer(name, getattr(self, name), at_least=1)
        if self.burn_in is not None:
            integer("burn_in", self.burn_in, at_least=0)
        integer("seed", self.seed, at_least=0)
        if self.thin > self.draws:
            raise ValueError(f"thin must be at most draws={self.draws}; got {self.thin}")
        if self.antithetic and self.chains % 2:
            raise ValueError(
                f"chains must be even when antithetic=True, chains come in pairs; got {self.chains}"
            )

    @property
    def epsilon(self) -> float:
        """The step size that is used."""
        if self.step_size is not None:
            return self.step_size
        return LM_STEP_TIMES_GAMMA / self.gamma if self.sampler == "lm" else 1e-3

    @property
    def burn_in_steps(self) -> int:
        """The number of burn-in steps that is used."""
        if self.burn_in is not None:
            return self.burn_in
        if self.sampler == "importance":
            return 0
        if self.sampler == "pcn":
            return max(50, self.draws // 4)
        return math.ceil(BURN_IN_RELAXATIONS / (self.epsilon * self.gamma / 2))

    @property
    def steps(self) -> int:
        """Steps of every chain, burn-in included."""
        return self.burn_in_steps + self.draws

    def but(self, **changes: float | int | str | bool | None) -> Settings:
        """The same settings with some changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, float | int | str | bool | None]:
        """Plain values, for records."""
        return asdict(self)
