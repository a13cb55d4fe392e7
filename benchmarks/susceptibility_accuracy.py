"""Susceptibilities against long exact runs, and their reliability from 160 draws.

Accuracy: a two-layer model with d_model 16 and 2 heads a layer, trained for 300 steps. The
reference is preconditioned Crank–Nicolson on the same fixed likelihood set, many long chains, with
the estimators written out from their definitions here and standard errors from leaving out chains.
Every entry of the matrix (components × tokens) is compared: z is the difference in units of both
standard errors.

Reliability: the shipped model, all 16 heads, the demonstration's settings, 160 draws; the
correlation over tokens of the matrix from the first half of the draws with that from the second.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr

import lens_slt as ls
from benchmarks import common, peer
from benchmarks.common import Target
from lens_slt.demo import MODEL, demo_settings
from lens_slt.sampling.result import dataset
from lens_slt.sampling.settings import Settings

TARGETS = {
    "max_z": Target(most=4),
    "sign_agreement": Target(least=1),
    "median_split_half": Target(least=0.9),
}
SMALL = peer.Size(d_model=16, n_heads=2, d_vocab=50, length=12, training_steps=300)
N_BETA, GAMMA = 30.0, 1000.0  # of ``full``: pcn still moves at this γ
COMPONENTS = ["L0H0", "L0H1", "L1H0", "L1H1", "full"]


def written_out(draws: xr.DataTree, estimator: str) -> tuple[np.ndarray, np.ndarray]:
    """χ ``[component, token]`` from the definition, and its error by leaving out whole chains."""
    probe = dataset(draws, "probes/text")
    phi = dataset(draws, "posterior")["paired_loss"].sel(draw=probe["draw"]).values
    phi = phi.astype(np.float64)  # [component, chain, draw]
    loss = probe["paired_loss"].values.astype(np.float64)
    d = loss.reshape(*loss.shape[:3], -1) - phi[..., None]
    by_chain = (np.einsum("kcd,kcdt->kct", phi, d) / phi.shape[2], phi.mean(2), d.mean(2))

    def chi(kept: np.ndarray) -> np.ndarray:
        phi_d, phi_mean, d_mean = (x[:, kept].mean(1) for x in by_chain)
        other = d_mean[-1:] if estimator == "two_posterior" else d_mean[:-1]
        return -(phi_d[:-1] - phi_mean[:-1, None] * other)

    every = np.arange(phi.shape[1])
    n = len(every)
    left_out = np.array([chi(every != i) for i in every])
    return chi(every >= 0), np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0))


def accuracy(estimator: str, long: xr.DataTree, own: xr.DataTree) -> dict[str, float]:
    """Largest |z| and agreement of signs of one estimator."""
    exact, exact_se = written_out(long, estimator)
    chi = ls.susceptibility(own, estimator=estimator)
    z = (chi["chi"].values - exact) / np.hypot(chi["se"].values, exact_se)
    clear = np.abs(exact) > 3 * np.hypot(chi["se"].values, exact_se)
    agree = np.sign(chi["chi"].values) == np.sign(exact)
    size = np.sqrt((exact**2).mean(1))
    rows = [
        [
            str(name), size[i], float(chi["rms_se"][i]), np.sqrt((exact_se[i] ** 2).mean()),
            float(np.abs(z[i]).max()), float(z[i].std()), int(clear[i].sum()),
            float(agree[i][clear[i]].mean()) if clear[i].any() else float("nan"),
        ]
        for i, name in enumerate(chi["component"].values)
    ]  # fmt: skip
    common.show_table(
        f"{estimator}: {z.size} entries; χ in nats²",
        ["component", "rms χ", "rms SE", "rms SE exact", "max |z|", "sd z", "clear", "signs agree"],
        rows,
    )
    return {"max_z": float(np.abs(z).max()), "sign_agreement": float(agree[clear].mean())}


def small_model_runs(args: Any) -> tuple[xr.DataTree, xr.DataTree]:
    """The long exact run and the one to be judged, on the same likelihood set."""
    model = peer.trained_model(SMALL, None)
    tokens = peer.synthetic_tokens(SMALL, 8, seed=10**6)
    probe = {"text": peer.synthetic_tokens(SMALL, 8, seed=10**6 + 1)}
    base = Settings(n_beta=N_BETA, gamma=GAMMA, batch_size=len(tokens), seed=args.seed)
    pcn = base.but(
        sampler="pcn", chains=8 if args.quick else 64, antithetic=False,
        draws=20 if args.quick else 6000, burn_in=5 if args.quick else 500, thin=5,
    )  # fmt: skip
    lm = base.but(draws=20 if args.quick else 3200, chains=4, thin=2, seed=args.seed + 1)
    long, own = (
        ls.sample(model, tokens, COMPONENTS, settings=s, probes=probe, progress=False)
        for s in (pcn, lm)
    )
    return long, own


def reliability(args: Any) -> float:
    """Median split-half of the two-posterior estimator over the heads."""
    length, sequences = (16, 8) if args.quick else (128, 512)
    settings = demo_settings(draws=160, seed=args.seed)
    settings = common.toy(settings) if args.quick else settings
    draws = ls.sample(
        ls.load_model(MODEL), ls.load_tokens("mix", n_sequences=sequences, length=length),
        ["heads", "full"], settings=settings, progress=False,
        probes={"mix": ls.load_tokens("mix", n_sequences=8, length=length, seed=1)},
    )  # fmt: skip
    two = ls.susceptibility(draws)
    restricted = ls.susceptibility(draws, estimator="restricted")
    llc = ls.per_token_llc(draws)
    rows = [
        [
            str(name),
            *(float(m["split_half"].sel(component=name)) for m in (two, restricted, llc)),
        ]
        for name in two["component"].values
    ]
    common.show_table(
        f"Split-half reliability, {MODEL}, {settings.draws} draws × {settings.chains} chains",
        ["component", "two_posterior", "restricted", "per-token rLLC"],
        rows,
    )
    return float(two["split_half"].median())


def main() -> None:
    """Command line."""
    args = common.parser(__doc__).parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    long, own = small_model_runs(args)
    figures = accuracy("two_posterior", long, own)
    for name, value in accuracy("restricted", long, own).items():
        figures[f"{name}_restricted"] = value
    figures["median_split_half"] = reliability(args)
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
