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
# # 7. How a circuit forms
#
# The finished `attn-2l` has an induction circuit: `L0H2` looks at the previous token, `L1H2` reads
# that through its keys and predicts what followed last time (tutorial 4). How did it come to be?
# Was there a moment? Which part was first? What did these heads do before?
#
# The model ships with 29 checkpoints of its training, so we can go and look. No GPU, no download.
# One to two minutes on two CPU cores.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %% [markdown]
# ## The training run as one value

# %%
import tempfile

import numpy as np
import pandas as pd
import plotly.express as px
import torch
import xarray as xr

run = ls.checkpoints("attn-2l")
print(run)
print(*run.steps)

# %% [markdown]
# Nothing is loaded yet: `run.load(step)` gives the model of one checkpoint. The steps are dense
# early, when everything changes fast, and again between 1700 and 2900, where the loss bends.
#
# ## When? Ask the behaviour first
#
# The cheapest question comes first, because it takes forward passes only and so can be asked at
# **all** checkpoints. Random tokens, said twice: in the second half a model with induction knows
# what comes next, and nothing else helps.

# %%
generator = torch.Generator().manual_seed(0)
once = torch.randint(1, 512, (16, 25), generator=generator)
twice = torch.cat([torch.zeros(16, 1, dtype=torch.long), once, once], dim=1)

rows = []
for step in run:
    with torch.no_grad():
        loss = run.load(step)(twice, return_type="loss", loss_per_token=True)
    rows.append(loss[:, 26:].mean(dim=1).cpu().numpy())  # of each sequence's second half
second = xr.DataArray(
    np.array(rows), dims=("checkpoint", "sequence"), coords={"checkpoint": list(run.steps)}
)
repeats = second.mean("sequence").rename("second half")
spread = second.std("sequence", ddof=1).rename("second half")

moment = ls.transitions(repeats, se=spread / 16**0.5)
columns = ["begin", "midpoint", "midpoint_low", "midpoint_high", "end", "change"]
print(moment[columns].to_dataframe().round(1).to_string())
assert 2200 < float(moment["midpoint"].item()) < 2300
ls.plot(moment)

# %% [markdown]
# **There was a moment.** For two thousand steps the second half cost as much as the first, and
# within a hundred more it fell by half: the midpoint is known to a few dozen steps. The *begin* is
# where a tenth of the fall was done. It is much earlier and much less sharp, because the loss did
# creep down before. Something was there early that was worth little. What?
#
# ## λ̂ over training
#
# Now the heads. `ls.develop` does at every checkpoint what tutorial 1 did at the last: it draws the
# weights of each head around where they stand and measures how much of them the loss holds in
# place. All checkpoints share their noise, so that *differences* are sharper than values.
#
# Sampling is dear, so here it is seven of the 29 checkpoints, three of 16 heads, and 30 draws: the
# circuit's two heads and a bystander, `L1H7`. (The last cell says what a real run would use.)

# %%
few = run.at([0, 600, 1700, 2200, 2300, 2600, 5300])
tokens = ls.load_tokens("mix", n_sequences=64, length=48)
probe = ls.load_tokens("mix", n_sequences=24, length=48, without=tokens)
settings = ls.Settings(draws=30, chains=2, burn_in=5, batch_size=4, thin=3)
folder = tempfile.mkdtemp()  # keeps everything; a path of yours can be gone on with
found = ls.develop(
    few, tokens, "L0H2, L1H2, L1H7", settings=settings, probes={"text": probe}, path=folder,
    progress=False,
)  # fmt: skip
llc = found["refined_llc"].to_dataset()
value, error = (llc[name].to_pandas().round(1).astype(str) for name in ("llc", "se"))
value + " ± " + error

# %%
ls.plot_curves(llc, quantity="llc")

# %% [markdown]
# **Look at**
#
# - (Every panel has its own axis of values.)
# - `L0H2` is high at step 600 already, long before there was any induction. It was a useful head
#   for something else.
# - `L1H2` is no more than its neighbour `L1H7` until 1700. Then its λ̂ doubles by 2300 and doubles
#   almost again: it rises *with* the transition.
# - `L1H7`, which is no part of the circuit, hardly moves after 600.
# - At step 0 λ̂ is negative. An untrained model is no minimum of the loss, so moving its weights
#   may well lower it. λ̂ is then no learning coefficient, only a sign that there is nothing to hold
#   yet.
#
# So few draws are not certified (`llc["certificate"]`), and their errors are only roughly known:
# read differences of several standard errors, and no others. How sure is the rise across the
# moment? `ls.compare` pairs the draws of the two checkpoints, which shared their noise. How much of
# it drops out depends on how alike the models are: between 2200 and 2300, where much was rebuilt,
# little does.

# %%
before, after = (llc.sel(checkpoint=step) for step in (2200, 2300))
change = ls.compare(before, after)
columns = ["llc", "llc_se", "llc_low", "llc_high", "llc_q"]
print(change[columns].to_dataframe().round(2).to_string())
apart = np.hypot(before["se"], after["se"])
print("standard errors if they had been independent:", *apart.values.round(2))
assert float(change["llc"].sel(component="L1H2")) > 0

# %% [markdown]
# ## For which tokens?
#
# λ̂ says that a head came to matter, not for what. `ls.pattern_llc` says for which tokens: the mean
# of a head's per-token rLLCs on the tokens of a pattern, minus that on all others. Whatever all
# heads do as weights grow drops out.

# %%
labels = ls.label_patterns(probe)
held = ls.join_checkpoints(
    {
        step: ls.pattern_llc(ls.open_checkpoint(folder, step)["per_token_llc/text"], labels)
        for step in few
    }
)
most = held["contrast"].sel(pattern="induction").idxmax("component")
assert str(most.sel(checkpoint=5300).values) == "L1H2"
ls.plot_curves(held.sel(pattern=["induction"]))

# %% [markdown]
# **Look at** `L1H2`: from 2200 on it holds induction tokens far beyond others, and keeps doing so.
# `L0H2`, which it reads, does so around the moment only: at the end its weights serve all tokens
# alike. The bystander never does.
#
# ## What the text says
#
# The sweep recorded the loss of every pattern of tokens in the probe, too. Induction is not all
# that a model learns, and in real text other things can predict a repeated token.

# %%
losses = found["sublosses"].to_dataset()
shown = losses.sel(pattern=["all", "induction", "repeat_5", "word_start"])
ls.plot_curves(shown)

# %% [markdown]
# **Look at** `repeat_5`, tokens in the middle of a stretch that was there before, beside
# `word_start`: only the first falls between 1700 and 2600.
#
# ## Stages? Not from seven checkpoints
#
# `ls.stages` cuts a curve where its slope changes. With few checkpoints a change cannot be told
# from noise, and it says so instead of guessing:

# %%
refused = False
try:
    ls.stages(llc)
except ValueError as why:
    refused = True
    print(why)
assert refused

# %% [markdown]
# With all 29 checkpoints it answers. (The published rule, local extrema of a smoothed curve, always
# answers: see the benchmark `benchmarks.stages`.) Tutorial 8 has a run with enough checkpoints.
# What we can use here is the moment found above, with its interval.
#
# ## Which part was first?
#
# λ̂ says what is held, not what it would cost to lose. `ls.construction` takes the finished circuit
# and follows each part back, by ablation: at every checkpoint, what does it cost the *induction
# tokens* of text, more than others, to take away this head, or this path?

# %%
text = ls.load_tokens("mix", n_sequences=48, length=48, without=[tokens, probe])
mine = ls.circuit("L0H2 -> L1H2.K", pattern="induction")
built = ls.construction(few, text, mine, trials="none", n_bootstrap=300, progress=False)
boundary = [float(moment[name].item()) for name in ("midpoint", "midpoint_low", "midpoint_high")]
order = ls.construction_table(built, [boundary])
order[["part", "what", "exists", "stage", "end", "unit"]].round(2)

# %% [markdown]
# How to read `exists`: *2300 (1700–2300)* says that the part is there from step 2300 on; at 1700 it
# clearly was not, at every checkpoint from 2300 on it clearly is. All intervals hold together in 95
# % of cases. *up to* means that there is no checkpoint at which it clearly was absent. `stage` 1 is
# before the moment, 2 after it.

# %%
ls.plot_construction(built, [boundary])

# %% [markdown]
# **Look at** the order, first by the symbols. The path is needed at 1700; the heads attend as they
# do at the end from 2200 and 2300 on. At 1700 its interval is still open: the effect is small, and
# 48 short sequences are few. But all rows that say *needed* are clearly there by 2200, before the
# moment.
#
# Onsets say from when on; sizes say how much. Side by side, the story of this circuit:

# %%
behaviour = found["behaviour_scores"].to_dataset()
effect = built["effect"].max("context")
story = pd.DataFrame(
    {
        "loss on repeats": repeats.sel(checkpoint=list(few.steps)),
        "L0H2 looks back": behaviour["previous_token"].sel(component="L0H2"),
        "L1H2 finds the copy": behaviour["prefix_matching"].sel(component="L1H2"),
        "path, nats": effect.sel(part="L0H2→L1H2.K"),
        "λ̂ L0H2": llc["llc"].sel(component="L0H2"),
        "λ̂ L1H2": llc["llc"].sel(component="L1H2"),
    },
    index=pd.Index(few.steps, name="step"),
)
story.round(2)

# %%
shares = story / story.abs().max()
figure = px.line(shares, markers=True, labels={"value": "share of the largest value"})
figure.update_layout(
    title="The same, each as a share of its largest value", template="plotly_white"
)
figure

# %%
onset = built["onset"].sel(part=["L0H2", "L1H2"])
assert (onset.sel(criterion="needed") <= onset.sel(criterion="behaves")).all()
path, loss = story["path, nats"], story["loss on repeats"]
assert path[2200] > 0.4 * path[5300]  # worth half of what it will be
assert loss[0] - loss[2200] < 0.3 * (loss[0] - loss[5300])  # and hardly seen in the behaviour

# %% [markdown]
# 1. **By 600** `L0H2` matters (λ̂), but it does not look back, and repeats are not predicted.
# 2. **By 1700** it begins to look back, and the path to the keys of `L1H2` may be worth a little.
# 3. **By 2200** that path is worth more than half of what it will be at the end, on text, while the
#    loss on random repeats has hardly moved and `L1H2` finds the copy one time in four. The circuit
#    is **older than the moment**: that was the early *begin* of the transition.
# 4. **Between 2200 and 2300** the loss on repeats halves: `L1H2` now finds the copy.
# 5. **After 2600** attention and the path change little. λ̂ of both heads still grows by half: what
#    is there becomes more exact, and more of the weights are held in place.
#
# ## What a real run would use
#
# | | here | for a result |
# |---|---|---|
# | checkpoints | 7 | all 29, and `ls.stages` answers |
# | heads | 3 | all 16: others to compare with, `ls.head_trajectories`, `ls.differentiation` |
# | draws, chains | 30, 2 | 200, 4: certificates |
# | tokens | 64 × 48 | 256 × 128 |
# | construction | no trials | the default: from when on a *trial* (tutorial 4) supports it |
# | where | memory | `path=`, so that it can be interrupted, and `parallel=2` |
#
# All of it is one command, which plans what fits a number of minutes and writes a report:
# `lens-slt develop --model attn-2l --out runs/development --minutes 15`.
#
# ## What to take away
#
# - Ask cheap observables at all checkpoints, dear ones where something happens.
# - λ̂ says *that* a head came to be held in place, behaviours *where it looks*, ablation *what it
#   is worth*. They need not move together, and the order in which they move is the finding.
# - A refusal is a result: seven checkpoints have no stages.
#
# ## Limits
#
# - One run. `attn-2l-seed1` and `attn-2l-seed2` are two more of the same kind.
# - *Needed* does not ask whether other heads have such an effect, too; the trial does.
# - Between two checkpoints nothing is known. The interval of an onset cannot be shorter than their
#   distance.
# - γ is a length: weights grow in training (`llc["weight_norm"]`), and one γ holds ever less of
#   them in place. `develop(..., gammas=[50, 800])` shows how far the curve depends on it.
#
# ## Exercises
#
# 1. Which heads induce in `attn-2l-seed1` (`ls.behaviour_scores`)? Follow them: is the path again
#    older than the moment?
# 2. Add steps 2000 and 2100 to `few`. Which intervals of the construction become shorter?
# 3. What did `L0H2` do at step 600? `ls.behaviour_scores` has more than two columns.
