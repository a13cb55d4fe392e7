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
# # 1. Quickstart: how much has each head learned?
#
# We measure the **refined local learning coefficient** (rLLC, λ̂) of all 16 heads of a small
# transformer, check that the numbers can be trusted, break a run on purpose to see what that looks
# like, and save a run so that it survives a crash.
#
# No GPU, no download: the model ships with lens_slt. Two minutes on two CPU cores.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %% [markdown]
# ## A model and its tokens
#
# `attn-2l` has two layers of eight attention heads, no MLPs, and was trained on the Python standard
# library: code, and the prose of its comments and documentation. With your own model, put any
# `HookedTransformer` or `TransformerBridge` in its place, and integers `[sequence, position]` in
# place of the tokens.

# %%
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.express as px

model = ls.load_model("attn-2l")
tokens = ls.load_tokens("mix", n_sequences=256, length=64)  # defines the loss
probes = {
    name: ls.load_tokens(name, n_sequences=8, length=64, without=tokens)
    for name in ("code", "prose")
}
print(f"{type(model).__name__}, {model.cfg.n_layers} layers × {model.cfg.n_heads} heads")
print("tokens:", tuple(tokens.shape), " each probe:", tuple(probes["code"].shape))

# %% [markdown]
# ## Sample
#
# For each head in turn, `ls.sample` freezes everything else at its trained values u\* and draws the
# head's weights v (its W_Q, W_K, W_V, W_O) from the **local posterior**
#
# $$p(v) \propto \exp\!\big(-n\beta\, L_n(u^*, v) - \tfrac{\gamma}{2}\lVert v - v^*\rVert^2\big)$$
#
# The first term pulls the draws to where the loss is low, the second keeps them near the trained
# weights v\*. Every head gets four independent chains. A *probe* is text whose loss is recorded at
# the draws without having a say in them.

# %%
settings = ls.Settings(n_beta=30, gamma=200, draws=100, batch_size=8, thin=4)
draws = ls.sample(model, tokens, "heads", settings=settings, probes=probes, progress=False)
table = ls.refined_llc(draws)
table

# %% [markdown]
# ## What the numbers mean
#
# $$\hat\lambda = n\beta\,\big(\mathbb{E}_v[L(u^*, v)] - L(w^*)\big)$$
#
# is how much the loss rises over the draws, times nβ. It has no unit. It counts, roughly, the
# directions of the head's weights that the loss holds in place: shake a head that does little, and
# the loss hardly moves; shake one that much depends on, and it rises.

# %%
ls.plot_rllc_map(table)

# %% [markdown]
# **Look at** the row of layer 1: one head stands out. `L1H2` is this model's induction head (it
# continues sequences that occurred before), and its λ̂ is more than twice that of any other head in
# its layer. All heads of layer 0 hold much, because layer 1 reads what they write.

# %%
layer_1 = table.sel(component=[f"L1H{head}" for head in range(8)])
ranked = layer_1["llc"].to_series().sort_values(ascending=False)
print(ranked.round(2).to_string())
assert ranked.index[0] == "L1H2"
margin = ranked.iloc[0] - 2 * ranked.iloc[1]
assert margin > 3 * np.hypot(layer_1["se"].max(), 2 * layer_1["se"].max())
assert float(table["llc"][:8].min()) > ranked.iloc[1] + 3 * float(table["se"].max())

# %% [markdown]
# ## Is the run healthy?
#
# Never read λ̂ before this. Every chain gets a **verdict** in words, by fixed rules; chains that are
# `diverged`, `spiky`, `still rising` or that `disagree` with the others are left out and named.

# %%
health = table[["chains_used", "rhat", "ess", "se", "llc", "verdict"]].to_dataframe()
health["se, % of λ̂"] = (100 * health["se"] / health["llc"]).round(1)
health.drop(columns=["se", "llc"]).round({"rhat": 3, "ess": 0})

# %% [markdown]
# - **R̂** compares the spread between chains with the spread within them: 1 is perfect, above 1.05
#   they have not seen the same distribution.
# - **ESS**, the effective sample size: how many *independent* draws would give the same error. 400
#   draws of a chain that moves slowly are worth fewer.
# - **SE**, the standard error that follows. For an interval of 95 %, take 1.96 SE either side.
#
# And look at the traces, of the heads that matter to you at least.

# %%
assert float(table["rhat"].max()) < 1.1
assert (table["verdict"] == "healthy").sum() >= 15
ls.plot_traces(draws, "L1H2")

# %% [markdown]
# **Look for**: four chains that leave zero during burn-in (grey, never used), then run level and on
# top of each other. The line is their mean: times nβ = 30 it is λ̂.
#
# Does the error bar keep its promise? Sample layer 1 again with another seed. The difference
# between the two runs, in units of its standard error, should look like standard normal numbers.

# %%
again = ls.sample(model, tokens, "L1H*", settings=settings.but(seed=1), progress=False)
second = ls.refined_llc(again)
z = (layer_1["llc"] - second["llc"]) / np.hypot(layer_1["se"], second["se"])
print(z.to_series().round(1).to_string())
print(f"root mean square: {float((z**2).mean() ** 0.5):.2f} (1 is expected)")
assert float((z**2).mean() ** 0.5) < 2.5

# %% [markdown]
# ## Code against prose
#
# The same draws, with the rise of the loss taken on other text, give **data-refined** λ̂: one
# column for each probe. A head that stands out in one column works for that kind of text.

# %%
columns = {
    name: table[f"probe_{name}"].to_pandas().melt(ignore_index=False)["value"]
    for name in ("llc", "se")
}
by_probe = pd.DataFrame(columns).assign(
    probe=table["probe_llc"].to_pandas().melt(ignore_index=False)["probe"]
)
by_probe["95 %"] = 1.96 * by_probe["se"]
px.scatter(
    by_probe.reset_index(), x="llc", y="component", color="probe", symbol="probe", error_x="95 %",
    template="plotly_white", height=560, labels={"llc": "data-refined λ̂ (dimensionless)"},
    title="Data-refined λ̂ on code and on prose, with 95 % intervals",
)  # fmt: skip

# %%
difference = table["probe_llc"].sel(probe="prose") - table["probe_llc"].sel(probe="code")
error = np.hypot(table["probe_se"].sel(probe="prose"), table["probe_se"].sel(probe="code"))
shift = pd.DataFrame({"prose − code": difference.to_series(), "SE": error.to_series()})
shift["z"] = shift["prose − code"] / shift["SE"]
shift.sort_values("z").round(2)

# %% [markdown]
# Differences of many standard errors are real *for these eight sequences*: the SE covers the
# sampling of weights, not the choice of text. To say something about code as such, use more
# sequences, and other ones (exercise 1).

# %% [markdown]
# ## Break it
#
# The step size ε decides how far a chain moves at a time. Left alone, lens_slt ties it to γ
# (ε = 0.8/γ = 0.004). Here it is ten times that.

# %%
broken = ls.sample(
    model, tokens, ["L0H1", "L1H2"], settings=settings.but(draws=40, step_size=0.04), progress=False
)
assert (broken["health"]["verdict"] == "diverged").all()
print(broken["health"]["summary"].to_pandas().to_string())
print(ls.refined_llc(broken)["llc"].to_pandas().to_string())

# %% [markdown]
# All chains ran away: verdict `diverged`, and λ̂ is NaN. An average over a chain that diverged would
# be a number without meaning, so there is none.
#
# The opposite mistake, steps so small that the chain has not arrived when the draws begin:

# %%
slow = ls.sample(
    model, tokens, ["L0H1", "L1H2"],
    settings=settings.but(draws=60, step_size=1e-4, burn_in=0), progress=False,
)  # fmt: skip
print(slow["health"]["summary"].to_pandas().to_string())
assert (slow["health"]["verdict"].sel(component="L0H1") == "still rising").any()
ls.plot_traces(slow, "L0H1")

# %% [markdown]
# `still rising`: the traces climb to the end. More burn-in is the cure, or a larger ε.
#
# And one mistake that **the traces do not show**. Plain SGLD with a step that is twice the default:

# %%
biased = ls.sample(
    model, tokens, ["L0H1", "L1H2"],
    settings=settings.but(draws=100, sampler="sgld", step_size=0.008), progress=False,
)  # fmt: skip
wrong = ls.refined_llc(biased)
pd.DataFrame(
    {
        "default": table["llc"].sel(component=["L0H1", "L1H2"]).to_series(),
        "SGLD, ε = 0.008": wrong["llc"].to_series(),
        "SE": wrong["se"].to_series(),
        "R̂": wrong["rhat"].to_series(),
        "verdict": wrong["verdict"].to_series(),
    }
).round(3)

# %%
right = table.sel(component=["L0H1", "L1H2"])
assert bool((wrong["llc"] > 1.4 * right["llc"]).all())
assert (wrong["verdict"] == "beyond the prior").all()

# %% [markdown]
# Level traces, chains that agree, R̂ near 1, and λ̂ far too high: with large steps SGLD samples
# *another distribution*, and samples it well. Only the distance gives it away: the draws lie
# further from the trained weights than the prior alone would put them (`beyond the prior`). Smaller
# biases have no verdict: healthy chains are fine, which does not mean that the sampler is right.
# How to tell is the subject of
# [tutorial 2](2_choosing_settings.ipynb).

# %% [markdown]
# ## Save and resume
#
# With `path=`, draws go to disk as they are made. Call again with the same arguments and the run
# continues where it stopped; if it had finished, the draws are read and nothing is sampled.

# %%
folder = Path(tempfile.mkdtemp())
arguments = dict(components=["L1H2"], settings=settings.but(draws=40), path=folder / "run")
for attempt in ("first call", "second call"):
    start = time.perf_counter()
    saved = ls.sample(model, tokens, **arguments, progress=False)
    found = ls.refined_llc(saved)
    seconds = time.perf_counter() - start
    print(f"{attempt}: λ̂ = {float(found['llc'][0]):.3f} after {seconds:.1f} s")

# %% [markdown]
# `ls.open_draws` reads finished draws in another session, without the model. A folder that holds
# the draws of something else is refused, and the message says what differs:

# %%
reopened = ls.refined_llc(ls.open_draws(folder / "run"))
assert float(reopened["llc"][0]) == float(found["llc"][0])
try:
    other = arguments | dict(components=["L1H3"])
    ls.sample(model, tokens, **other, progress=False)
except ValueError as error:
    print(error)

# %% [markdown]
# ## What to take away
#
# - `ls.sample` → `ls.refined_llc`: λ̂ of every component, with a standard error.
# - Read the verdicts first, then R̂, ESS and the traces, then λ̂.
# - λ̂ on a probe says which text a head's weights matter for.
#
# ## Limits
#
# - λ̂ depends on nβ and γ: compare components, or checkpoints, at *one* setting, and quote it.
# - The standard error is that of the sampling. Other tokens would give another λ̂.
# - A healthy chain can sample the wrong distribution (above), and high λ̂ does not say *what* a head
#   does: that takes [tutorial 3](3_susceptibilities.ipynb).
#
# ## Exercises
#
# 1. Make the probes with `seed=2`. Which of the differences between code and prose come back?
# 2. Sample `"full"` (all weights together) and `"L1"` (a layer) beside `"L1H2"`. Is the whole the
#    sum of its parts?
# 3. Give `path=`, interrupt the run halfway (the stop button), call it again, and compare λ̂ with
#    that of a run without interruption.
