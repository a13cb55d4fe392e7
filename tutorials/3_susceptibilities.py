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
# # 3. Susceptibilities: which heads go with which tokens
#
# λ̂ says how much a head has learned, not what. Here we look token by token: a matrix of **tokens ×
# heads**, its **modes** (patterns over heads that go with patterns over tokens), and, with every
# step, the question of what would come back if the draws were made again.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %% [markdown]
# ## Draws with a probe
#
# `tokens` define the local posterior; the losses of the **probe**, other text, are recorded per
# token. Besides the heads we sample `full`, all weights together: one of the two estimators below
# needs it.

# %%
import numpy as np
import pandas as pd
import plotly.express as px

model = ls.load_model("attn-2l")
tokens = ls.load_tokens("mix", n_sequences=256, length=64)
probe = ls.load_tokens("mix", n_sequences=24, length=64, without=tokens)
settings = ls.Settings(n_beta=30, gamma=200, draws=120, batch_size=8, thin=4)
draws = ls.sample(
    model, tokens, ["heads", "full"], settings=settings, probes={"mix": probe}, progress=False
)
draws["health"]["summary"].to_series().value_counts()

# %% [markdown]
# ## Per-token rLLC
#
# $$\hat\lambda_{xy} = n\beta\,\mathbb{E}_C\big[\ell_{xy}(w) - \ell_{xy}(w^*)\big]$$
#
# is how much the loss of *one* token y in its context x rises over the draws of head C, times nβ.
# High means: this prediction depends on this head. The mean over tokens is the data-refined λ̂ of
# tutorial 1.

# %%
HEADS = [f"L{layer}H{head}" for layer in range(2) for head in range(8)]
llc = ls.per_token_llc(draws).sel(component=HEADS)
llc

# %% [markdown]
# A piece of one sequence, to see what an entry is. Columns are **standardised** (mean 0, standard
# deviation 1 over all tokens of the probe), so that heads can be compared.

# %%
patterns = ls.label_patterns(probe)  # which class of text each token belongs to
induction = patterns.sel(pattern="induction").values
where = llc["sequence"].values, llc["position"].values
is_induction = induction[where]
shown_sequence = int(induction.sum(1).argmax())
rows = np.flatnonzero(llc["sequence"].values == shown_sequence)[-36:]
texts = ls.contexts(llc, rows=rows, width=0)
standard = (llc["llc"] - llc["llc"].mean("token")) / llc["llc"].std("token")
labels = [f"{i}: {text.strip('«»')}" for i, text in enumerate(texts)]
px.imshow(
    standard.transpose("component", "token").values[:, rows], x=labels, y=HEADS, zmin=-4, zmax=4,
    color_continuous_scale="RdBu_r", aspect="auto", template="plotly_white", height=520,
    labels=dict(x="token", y="component", color="standardised λ̂"),
    title="Per-token rLLC of the last 36 tokens of one sequence",
)  # fmt: skip

# %% [markdown]
# **Look at** the vertical stripes: on some tokens most heads are high or low together. That is a
# property of the token more than of a head, and will be the first mode. And look at the row of
# `L1H2`, which goes its own way: of all sequences this one repeats itself most.

# %% [markdown]
# ## Is it signal?
#
# `split_half` is the correlation, over tokens, of a column from the first half of the draws with
# the same column from the second half. `reliability` is what follows for all draws together. No
# matrix should be read without them.

# %%
chi = ls.susceptibility(draws)
reliability = pd.DataFrame(
    {
        "per-token rLLC, split half": llc["split_half"].to_series(),
        "reliability": llc["reliability"].to_series(),
        "χ, split half": chi["split_half"].to_series(),
    }
)
assert llc["split_half"].min() > 0.7
reliability.round(2)

# %% [markdown]
# ## Susceptibility
#
# χ is the published relative of this matrix ([Baker et al. 2025](https://arxiv.org/abs/2504.18274)):
# how the head's loss responds when the data distribution shifts towards a token,
#
# $$\chi_{xy} = -\big(\mathbb{E}_C[\varphi\, D_{xy}]
# - \mathbb{E}_C[\varphi]\,\mathbb{E}_{full}[D_{xy}]\big),
# \qquad \varphi = L_n(w) - L_n(w^*),\quad D_{xy} = \ell_{xy}(w) - L_n(w).$$
#
# **Signs.** After standardisation, χ *negative* means that the head *expresses* the token (its loss
# falls with more of it), positive that it suppresses it. For per-token rLLCs *high* is what has
# been learned. The two matrices carry opposite signs for the same thing.
#
# χ is a sum of two terms. One of them is nearly all of it:

# %%
share = {
    head: np.corrcoef(chi["chi"].sel(component=head), chi["mean_term"].sel(component=head))[0, 1]
    for head in HEADS
}
print(f"correlation over tokens of χ with its mean term: at least {min(share.values()):.3f}")
assert min(share.values()) > 0.95
first = {
    "χ": float(ls.modes(chi, n_bootstrap=0)["explained"][0]),
    "per-token rLLC": float(ls.modes(llc, n_bootstrap=0)["explained"][0]),
}
assert first["χ"] > 0.9 and 0.3 < first["per-token rLLC"] < 0.7
pd.Series(first).map("{:.1%} of the variance is the first mode".format)

# %% [markdown]
# The columns of χ are nearly copies of each other, because all share the draws of `full`. The
# per-token rLLC does without `full`, and heads differ more. We go on with it.

# %% [markdown]
# ## Modes
#
# A mode is a pair of singular vectors of the standardised matrix: **loadings** over heads and
# **scores** over tokens. With `whiten=True` heads are measured in units of their sampling noise, so
# that modes come in the order of signal to noise. Every loading has an interval and every mode a
# verdict, from a bootstrap that resamples draws and whole sequences.

# %%
modes = ls.modes(llc, whiten=True, n_modes=5)
ls.plot_modes(modes, n_modes=3)

# %%
modes[["explained", "angle", "verdict"]].to_dataframe().round({"explained": 3, "angle": 0})

# %% [markdown]
# - `angle`: how far, in degrees, the mode turns in 95 % of the resamples. Under 30 it is `stable`.
# - `stable span`: modes of nearly the same size mix with each other, but what they span together
#   comes back.
# - `may be noise`: **do not interpret it**, however good a story its tokens tell. Higher modes
#   usually end here.
#
# **Look at** mode 1: all heads have the same sign. These are the stripes. Mode 2 is where heads
# part: `L1H2` has by far the largest loading, against most other heads of its layer.

# %%
loading = modes["loading"].sel(mode=2)
assert str(loading["component"][int(loading.values.argmax())].values) == "L1H2"
others = modes["loading_high"].sel(mode=2).drop_sel(component="L1H2")
assert float(modes["loading_low"].sel(mode=2, component="L1H2")) > float(others.max())
assert (modes["loading_low"].sel(mode=1) > 0).all()
assert (modes["verdict"][:2] == "stable").all()
loading.to_series().sort_values().round(2).iloc[[0, 1, 2, -3, -2, -1]]

# %% [markdown]
# ## Which tokens?
#
# `ls.label_patterns` knows classes of text (induction, brackets, ends of words, …).
# `ls.enrichment` asks how well the scores of a mode tell the tokens of a pattern from the others:
# AUC 0.5 is no relation, 1 and 0 are perfect, at the high and at the low end. Intervals and
# q-values count sequences, not tokens, because tokens of one sequence are not independent.

# %%
enriched = ls.enrichment(modes, patterns)
ls.plot_enrichment(enriched.isel(mode=slice(0, 3)))

# %%
best = enriched.sel(mode=2)[["auc", "low", "high", "q", "n_tokens"]].to_dataframe()
assert best.loc["induction", "low"] > 0.7
best.drop(columns="mode").sort_values("auc", ascending=False).head(6).round(3)

# %% [markdown]
# Mode 2 is high on **induction** tokens: the token and the one before it stood next to each other
# earlier in the sequence. Together with its loadings: `L1H2` is the head that continues what
# occurred before. Nothing was ablated to learn this.
#
# Read some of these tokens yourself; a label is a summary. « » marks the token that is predicted.

# %%
pd.set_option("display.max_colwidth", 80)
ls.top_tokens(modes.sel(mode=[2]), n=8)

# %% [markdown]
# And χ? Its second mode says the same with the sign turned: `L1H2` positive, induction at the *low*
# end, AUC below 0.5, which for χ means expression.

# %%
chi_modes = ls.modes(chi, n_modes=4)
chi_auc = ls.enrichment(chi_modes, patterns)["auc"].sel(mode=2, pattern="induction")
assert float(chi_modes["loading"].sel(mode=2, component="L1H2")) > 0.6 and float(chi_auc) < 0.4
print(f"L1H2 on mode 2 of χ: {float(chi_modes['loading'].sel(mode=2, component='L1H2')):+.2f}")
print(f"AUC of mode 2 of χ for induction: {float(chi_auc):.2f}")
print("verdicts:", *chi_modes["verdict"].values, sep="\n  ")

# %% [markdown]
# ## The control: nβ = 0
#
# At nβ = 0 the loss has no say in the draws: they are random weights around the trained ones. Heads
# still differ then and modes still appear. Before saying that a mode shows what the local posterior
# holds in place, see whether the control has it too.

# %%
control_draws = ls.sample(
    model, tokens, "heads", settings=settings.but(n_beta=0, draws=60), probes={"mix": probe},
    progress=False,
)  # fmt: skip
control = ls.modes(ls.per_token_llc(control_draws), whiten=True, n_modes=5)
control_auc = ls.enrichment(control, patterns)["auc"].sel(pattern="induction")
assert abs(float(control_auc.sel(mode=2)) - 0.5) < 0.5 * (best.loc["induction", "auc"] - 0.5)
pd.DataFrame(
    {
        "AUC for induction, nβ = 30": enriched["auc"].sel(pattern="induction").to_series(),
        "nβ = 0": control_auc.to_series(),
        "loading of L1H2, nβ = 30": modes["loading"].sel(component="L1H2").to_series(),
        "nβ = 0 ": control["loading"].sel(component="L1H2").to_series(),
    }
).round(2)

# %% [markdown]
# Mode 1, what all heads share, is in the control too. The mode of `L1H2` and induction is not:
# mode 2 of the control hardly knows induction.

# %% [markdown]
# ## A map
#
# UMAP lays tokens that the heads respond to alike close together. It is made for looking, not for
# concluding: distances between groups and their sizes mean nothing. (The first map takes some
# seconds more, while UMAP compiles.)

# %%
coordinates = ls.token_map(llc)
family = np.full(llc.sizes["token"], "none", dtype=object)
for name in ("word_part", "word_end", "spacing", "induction", "quote", "right_delimiter"):
    family[patterns.sel(pattern=name).values[where]] = name
ls.plot_map(coordinates, family, ls.contexts(llc), label="pattern")

# %% [markdown]
# **Look at** where the induction tokens lie: many of them keep to themselves. Hover over points to
# read them. How much of the map would come back? Make the map from either
# half of the draws and count the neighbours that each token keeps.

# %%
earlier, later = (ls.token_map(half) for half in ls.halves(llc))
stability = {
    "first half, second half of the draws": ls.map_stability(earlier, later),
    "all draws, another seed": ls.map_stability(coordinates, ls.token_map(llc, seed=1)),
}
halves_agree = stability["first half, second half of the draws"]
assert 5 * float(halves_agree["chance"]) < float(halves_agree["agreement"]) < 0.5
ls.plot_stability(maps=stability)

# %% [markdown]
# Agreement is far above chance (grey) and far below 1: neighbourhoods are partly real. Do not read
# a point's exact place, or a small island, without asking whether it is there in both halves.

# %% [markdown]
# ## What to take away
#
# - `ls.per_token_llc` and `ls.susceptibility` give tokens × heads; their signs are opposite.
# - Split-half first, then modes with a verdict and intervals, then patterns, then stories.
# - Here, from draws alone: `L1H2` goes with induction tokens. Whether it *causes* the behaviour is
#   for interventions to say:
#   [tutorial 4](4_circuits_on_trial.ipynb).
#
# ## Limits
#
# - 24 sequences of 63 predicted tokens. The bootstrap resamples them, but cannot invent the text
#   that they do not hold.
# - Modes are orthogonal, what a model does need not be: two behaviours can share a mode.
# - Noise attenuates small loadings. That an interval covers zero does not show that a head is idle.
#
# ## Exercises
#
# 1. Take `whiten=False`. Which modes are still stable, and which head leads mode 2?
# 2. Look at mode 3 (`ls.top_tokens`, the enrichment figure). Which heads, which patterns? Would you
#    bet on it? Sample with `seed=1` and see whether it comes back.
# 3. Run `ls.clusters(llc)`. How many groups of tokens does it find beyond chance, and does that
#    fit what the map seems to show?
