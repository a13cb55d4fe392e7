# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Choosing nβ, γ and the sampler
#
# A run has three knobs: the inverse temperature nβ, the localization γ and the step size ε. Two of
# them choose *what* is measured, the third should not matter, and often does. First we let the
# method prove itself where the answer is known, then on heads of a transformer.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %% [markdown]
# ## Known answer 1: a Gaussian
#
# `ls.sample_function` runs the same chains on any function. On L(w) = ½ Σ hᵢ wᵢ² everything is
# known: λ̂ = ½ Σ nβ·hᵢ / (nβ·hᵢ + γ). A direction counts one half if the loss holds it
# (nβ·hᵢ ≫ γ), nothing if it does not.

# %%
import numpy as np
import pandas as pd
import plotly.express as px
import torch

curvature = torch.logspace(-1, 1.3, 40)
n_beta, gamma = 30.0, 200.0
exact = float((n_beta * curvature / (n_beta * curvature + gamma)).sum() / 2)


def quadratic(w):
    """[chain, parameter] → [chain]"""
    return (w.square() * curvature).sum(-1) / 2


def row_of(name, draws, **more):
    """λ̂ of the first component, as a row of a table."""
    found = ls.refined_llc(draws).isel(component=0)
    numbers = {"λ̂": float(found["llc"]), "SE": float(found["se"])}
    return {"run": name, **numbers, "verdict": str(found["verdict"].values), **more}


base = ls.Settings(n_beta=n_beta, gamma=gamma, chains=32, draws=400, antithetic=False)
runs = {
    "lm, ε = 0.8/γ (default)": base,
    "pcn": base.but(sampler="pcn", draws=1500),
    "sgld, ε = 0.0005": base.but(sampler="sgld", step_size=5e-4),
    "sgld, ε = 0.001": base.but(sampler="sgld", step_size=1e-3),
    "sgld, ε = 0.0025": base.but(sampler="sgld", step_size=2.5e-3),
}
rows = [
    row_of(name, ls.sample_function(quadratic, torch.zeros(40), settings=settings))
    for name, settings in runs.items()
]
gaussian = pd.DataFrame(rows).set_index("run")
gaussian["off by"] = (gaussian["λ̂"] / exact - 1).map("{:+.1%}".format)
gaussian["off by, in SE"] = (gaussian["λ̂"] - exact) / gaussian["SE"]
assert gaussian["off by, in SE"].iloc[:2].abs().max() < 4  # lm and pcn are right
assert gaussian["off by, in SE"].iloc[-1] > 10  # sgld is not
print(f"exact: {exact:.3f}")
gaussian.round(3)

# %% [markdown]
# `lm` (Leimkuhler–Matthews, the default) and `pcn` hit the exact value within their errors. Plain
# SGLD is too high, the more so the larger ε, and every verdict is healthy: its chains sample
# *another* distribution, well. `lm` costs the same gradient a step and is exact on the Gaussian
# part, which is why ε can be tied to γ and stops being a knob.

# %% [markdown]
# ## Known answer 2: a singular potential
#
# L(w) = w⁴ is flatter than any parabola. Its learning coefficient is λ = 1/4, half of what a
# parabola in one dimension has. That is the value as nβ → ∞; at finite nβ the exact one follows by
# quadrature.


# %%
def quadrature(n_beta, gamma):
    """nβ·E[w⁴] under exp(−nβ·w⁴ − γ/2·w²)."""
    w = np.linspace(0, 6, 200_001)
    density = np.exp(-n_beta * w**4 - gamma / 2 * w**2)
    return float(n_beta * (w**4 * density).sum() / density.sum())


rows = []
for n_beta_4, step_size in ((3.0, 0.02), (30.0, 5e-3), (300.0, 1.5e-3)):
    settings = ls.Settings(
        n_beta=n_beta_4, gamma=1, step_size=step_size, chains=256, draws=2000, burn_in=1000,
        antithetic=False,
    )  # fmt: skip
    draws = ls.sample_function(lambda w: w[:, 0] ** 4, torch.zeros(1), settings=settings)
    rows.append(row_of(f"nβ = {n_beta_4:g}", draws, exact=quadrature(n_beta_4, 1)))
quartic = pd.DataFrame(rows).set_index("run")
quartic["off by, in SE"] = (quartic["λ̂"] - quartic["exact"]) / quartic["SE"]
assert quartic["off by, in SE"].abs().max() < 4
assert (quartic["SE"] < 0.02 * quartic["exact"]).all()
quartic.round(4)

# %% [markdown]
# λ̂ agrees with the exact value at each nβ, and both climb towards 1/4. This is the first thing to
# remember about λ̂: at finite nβ and γ it is **not** the asymptotic coefficient. The prior takes its
# share. (Near a singularity the loss has long tails: of 256 chains a few may be called `spiky` by
# chance, and are left out.)

# %% [markdown]
# ## On a transformer: calibrate
#
# No formula here. `ls.calibrate` sweeps nβ and γ with short chains, by a fixed rule: accepted are
# settings at which every chain is healthy, λ̂ is at least 10 standard errors, and the loss is well
# below that of the control; chosen is the one where λ̂ depends least on the knobs.

# %%
model = ls.load_model("attn-2l")
tokens = ls.load_tokens("mix", n_sequences=32, length=64)
calibration = ls.calibrate(
    model, tokens[:16], ["L1H2", "L1H5"], n_betas=(10, 30, 100), gammas=(100, 300),
    settings=ls.Settings(draws=100), progress=False,
)  # fmt: skip
print(calibration.reason)
assert calibration.settings is not None

# %%
ls.plot(calibration)

# %% [markdown]
# **Look at** the upper row: λ̂ grows with nβ and nowhere reaches a plateau. So there is no "true"
# setting; there are settings at which a measurement works. The lower row says how: the share by
# which the likelihood lowers the loss below that of the prior. Near zero, the draws are the prior's
# (nβ too small for this γ). Open symbols are refused; here is why. (`above the prior`: the loss is
# higher than with no likelihood at all, so the steps or the minibatch noise are too large there.)

# %%
why = calibration.evidence["why"].to_dataframe()["why"]
assert (why != "accepted").any() and (why == "accepted").any()
low, high = (calibration.evidence["llc"].sel(n_beta=value) for value in (10, 100))
assert bool((low < high).all())
why.to_frame()

# %% [markdown]
# ## The control, nβ = 0
#
# What "below the control" means: the same γ, once with the loss in the posterior, once without.

# %%
short = ls.Settings(draws=100, batch_size=8)  # nβ 30, γ 200
pair = ["L0H2", "L1H2"]
rises = {}
for value in (0, 30):
    settings = short.but(n_beta=value)
    found = ls.refined_llc(ls.sample(model, tokens, pair, settings=settings, progress=False))
    rises[f"nβ = {value}"] = found["mean_paired_loss"].to_series()
control = pd.DataFrame(rises)
control["share of the control"] = control["nβ = 30"] / control["nβ = 0"]
assert (control["share of the control"] < 0.95).all()
control.round(3)

# %% [markdown]
# The mean rise of the loss, in nats per token. It is *smaller* at nβ = 30, because the local
# posterior avoids where the loss is high. Were the two equal, λ̂ would be nβ times a property of the
# prior. (At nβ = 0, λ̂ itself is zero by definition.)

# %% [markdown]
# ## The bias of SGLD's step size, on heads
#
# For a fixed set of tokens there are two **exact references** without gradients or step size:
# `importance` (draws from the prior, weighted; it refuses when the weights are too uneven, k̂ > 0.7)
# and `pcn`, a Markov chain that accepts or rejects. They are what `sgld` and `lm` have to meet. All
# get the same 16 sequences, in one batch: only the step size can make a difference.

# %%
heads = ["L0H2", "L1H5"]
fixed = tokens[:16]
batch = ls.Settings(draws=100, batch_size=16)  # nβ 30, γ 200
exact_settings = batch.but(antithetic=False)
runs = {
    ("importance", None): exact_settings.but(sampler="importance"),
    ("lm", None): batch,
    **{
        ("sgld", step_size): batch.but(sampler="sgld", step_size=step_size)
        for step_size in (1e-3, 2e-3, 4e-3)
    },
}
rows = []
for (sampler, step_size), settings in runs.items():
    found = ls.refined_llc(ls.sample(model, fixed, heads, settings=settings, progress=False))
    name = sampler if step_size is None else f"{sampler} {step_size:g}"
    rows += [
        {"run": name, "head": head, "λ̂": float(found["llc"].sel(component=head)),
         "SE": float(found["se"].sel(component=head)),
         "verdict": str(found["verdict"].sel(component=head).values)}
        for head in heads
    ]  # fmt: skip
settings = exact_settings.but(sampler="pcn", draws=300)
rows.append(
    {**row_of("pcn", ls.sample(model, fixed, ["L1H5"], settings=settings, progress=False)),
     "head": "L1H5"}
)  # fmt: skip
bias = pd.DataFrame(rows)
bias["95 %"] = 1.96 * bias["SE"]
px.scatter(
    bias, x="run", y="λ̂", error_y="95 %", color="run", facet_col="head", template="plotly_white",
    title="λ̂ by sampler and step size, with 95 % intervals", height=450,
    category_orders={"run": ["importance", "pcn", "lm", "sgld 0.001", "sgld 0.002", "sgld 0.004"]},
).update_yaxes(matches=None, showticklabels=True).update_layout(showlegend=False)  # fmt: skip

# %%
wide = bias.pivot(index="run", columns="head", values=["λ̂", "SE"])
reference = wide.loc["importance"]
for head in heads:
    error = np.hypot(wide["SE", head], reference["SE", head])
    wide["off by, in SE", head] = (wide["λ̂", head] - reference["λ̂", head]) / error
    assert abs(wide["off by, in SE", head]["lm"]) < 3
    assert wide["off by, in SE", head]["sgld 0.004"] > 5
assert abs(wide["off by, in SE", "L1H5"]["pcn"]) < 3
wide.drop(index="importance")[["λ̂", "off by, in SE"]].round(2)

# %% [markdown]
# **Look at** the two panels: the exact references and `lm` agree within their errors, SGLD climbs
# with ε. At 0.004, where `lm` runs, it is high by more than a fifth: the verdict `beyond the prior`
# says that its draws lie too far out. Half the step is still biased, and no verdict need say so. A
# longer run would not help: bias does not average out, the error bar only shrinks around the wrong
# value. Smaller steps have less bias, but the chains crawl, and the same number of draws is worth
# less: wider intervals, and R̂ complains. `lm` does not have to choose.

# %%
for head in heads:
    values, errors = wide["λ̂", head], wide["SE", head]
    assert values["sgld 0.004"] > 1.2 * values["importance"]
    assert values["sgld 0.001"] < values["sgld 0.002"] < values["sgld 0.004"]
    assert errors["sgld 0.001"] > errors["sgld 0.004"]
sgld = bias[bias["run"].str.startswith("sgld")].set_index(["run", "head"])
assert (sgld.loc["sgld 0.004", "verdict"] == "beyond the prior").all()
assert (sgld.loc["sgld 0.001", "verdict"] != "healthy").any()
sgld[["λ̂", "SE", "verdict"]].round(3)

# %% [markdown]
# ## Presets
#
# To compare with published numbers, use their settings, bias included:

# %%
pd.DataFrame(
    {name: {**given.as_dict(), "ε": given.epsilon} for name, (given, _) in ls.PRESETS.items()}
).loc[["sampler", "n_beta", "gamma", "ε", "chains", "draws", "batch_size", "antithetic"]]

# %%
for name, (_, source) in ls.PRESETS.items():
    print(f"{name}: {source}\n")

# %% [markdown]
# `ls.sample(model, tokens, settings="wang2024")` uses one. Read its note first: these give no
# burn-in of their own, and not every number could be checked against the paper.
#
# ## What to take away
#
# - nβ and γ say *what* is measured. Choose them once (`ls.calibrate`), keep them for all components
#   and checkpoints that you compare, and quote them.
# - ε is an error, not a choice. `lm` at ε = 0.8/γ keeps it small; `importance` or `pcn` on a few
#   heads certify that.
# - Verdicts and R̂ see chains that misbehave. Of a biased sampler they see only the worst.
#
# ## Limits
#
# - The references are exact on a *fixed, small* token set and need many draws where a head holds
#   much: on `L1H2` the weights of `importance` are often too uneven, and `pcn` is slow.
# - `lm` is second-order accurate, not exact: where the loss is much steeper than the prior
#   (nβ·h ≫ γ), a smaller ε is needed. Halve it and look.
# - Minibatches add noise to gradients, and some bias with it; larger ones cost more and have less.
#
# ## Exercises
#
# 1. Run `lm` on the two heads with `step_size=0.002` and `0.008`. Is the default on the safe side?
# 2. Try `importance` on `L1H2` with 50 draws, and read the verdict. With how many does it pass?
# 3. Replace w⁴ by (w₁·w₂)². Its λ is 1/2, with multiplicity 2. How far is λ̂ from it at nβ = 1000?
