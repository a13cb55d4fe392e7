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
# # 8. A training run of your own
#
# We train a tiny transformer, keep the right checkpoints on the way, and let `ls.develop` say what
# happened: into which stages the training falls, and which heads did what in each.
#
# No GPU, no download. One to two minutes on two CPU cores, most of it for sampling.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %% [markdown]
# ## A task with a shortcut
#
# Every sequence is a string of random tokens, said again and again, with a period between 4 and 12
# that differs from sequence to sequence. How well can it be predicted?
#
# | what the model knows | loss after the first period |
# |---|---|
# | nothing | log 24 = 3.18 nats |
# | a shortcut: the next token is one of those already seen | about 2 nats |
# | the rule: find where the present token stood before, predict what followed | almost 0 |
#
# The rule takes an **induction circuit**: a head that looks at the previous token, and a head in a
# later layer that uses what the first one found out. So two layers, two heads each, no MLPs.
#
# The model is a `HookedTransformer` (TransformerLens up to 3.x; with 4.x take a
# `TransformerBridge`, the rest is the same). Here it has no LayerNorm, to keep it small, and
# *shortformer* positions, which heads see when they choose where to look but do not copy.

# %%
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd
import plotly.express as px
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

warnings.filterwarnings("ignore", "HookedTransformer is deprecated")
LETTERS, LENGTH, N_STEPS = 24, 25, 1000
folder = Path(tempfile.mkdtemp())
generator = torch.Generator().manual_seed(0)


def repeats(n):
    """Token 0, then random tokens 1 to 24 with a period of 4 to 12."""
    period = torch.randint(4, 13, (n, 1), generator=generator)
    letters = torch.randint(1, LETTERS + 1, (n, LENGTH - 1), generator=generator)
    said_again = letters.gather(1, torch.arange(LENGTH - 1) % period)
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), said_again], dim=1)


config = HookedTransformerConfig(
    n_layers=2, n_heads=2, d_model=32, d_head=16, n_ctx=LENGTH, d_vocab=LETTERS + 1,
    attn_only=True, normalization_type=None, positional_embedding_type="shortformer",
    device="cpu", seed=0,
)  # fmt: skip
model = HookedTransformer(config)
print(repeats(1)[0].tolist())

# %% [markdown]
# ## Keep checkpoints while training
#
# Which checkpoints will be interesting is known only afterwards. `ls.checkpoint_schedule` makes a
# plan that is dense early, when everything is fast, and has no long gaps later. And
# `ls.CheckpointSaver` keeps `extra` checkpoints beyond it **where the loss bends**: it saves
# candidates as they come and drops the least telling ones again.
#
# It goes into any training loop as one line, *before* the update, so that the loss belongs to the
# weights that are saved.

# %%
schedule = ls.checkpoint_schedule(N_STEPS, n=12)
saver = ls.CheckpointSaver(folder / "run", schedule, extra=8)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for step in range(N_STEPS + 1):
    loss = model(repeats(32), return_type="loss")
    saver(step, model, loss)  # the line
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(saver)
assert losses[300] > 2.2 and losses[-1] < 1.6

# %%
kept = pd.DataFrame({"step": list(saver.kept), "why": list(saver.kept.values())})
kept["loss"] = [losses[step] for step in kept["step"]]
figure = px.line(y=losses, labels={"x": "step", "y": "loss of the batch (nats)"})
figure.update_traces(line=dict(width=1, color="lightgrey"))
for trace in px.scatter(kept, x="step", y="loss", color="why", symbol="why").data:
    figure.add_trace(trace.update(marker_size=9))
figure.update_layout(title="The loss, and the checkpoints that were kept", template="plotly_white")
figure

# %% [markdown]
# **Look at** the shape of the curve: a fall to about 2.5, which slows down; a second, steep fall
# within a hundred steps; a long tail. (The average includes the first period, which nobody can
# predict: it cannot go much below 1.2.) Several of the `bend` checkpoints are at the steep fall,
# through which the schedule alone would have passed in one or two strides.
#
# The steps at which this happens differ between machines: training multiplies differences in the
# last bit. Yours may be earlier or later than ours, near 360. The story is the same.
#
# ## The run as one value
#
# Configuration and weights lie together in the folder, so that nothing else is needed later.

# %%
run = ls.checkpoints(folder / "run")
print(run)
print("problems:", run.check() or "none")  # loads every one and looks

# %% [markdown]
# ## What happened?
#
# `ls.develop` does at every checkpoint what the other tutorials do with one model. We ask for
# `full`: all weights at once, the plain local learning coefficient λ̂ of the whole model. (`heads`
# would give the refined one of each head, tutorial 7.) A *probe* is text whose losses are recorded
# by pattern.
#
# 40 draws and two chains are what a minute allows.

# %%
tokens, probe = repeats(128), repeats(64)
settings = ls.Settings(draws=40, chains=2, burn_in=4, batch_size=16, thin=2)
start = time.perf_counter()
found = ls.develop(
    run, tokens, "full", settings=settings, probes={"repeats": probe},
    path=folder / "sweep", progress=False,
)  # fmt: skip
print(f"{time.perf_counter() - start:.0f} s")
llc = found["refined_llc"].to_dataset()
loss = found["sublosses"]["loss"].sel(probe="repeats", drop=True)
pd.DataFrame({
    "loss": loss.sel(pattern="all"), "of repeated tokens": loss.sel(pattern="induction"),
    "λ̂": llc["llc"].sel(component="full"), "±": llc["se"].sel(component="full"),
    "certificate": llc["certificate"].sel(component="full"),
}, index=pd.Index(run.steps, name="step")).round(2)  # fmt: skip

# %% [markdown]
# **Look at the last column first.** A certificate says that the chain was shown to sample what it
# should, to within a tenth of λ̂. At the early checkpoints there is no λ̂ to speak of, and so few
# draws cannot show that: *not certified*, for want of evidence (`llc["why"]` says so), not because
# something was found wrong. What follows is about changes of many standard errors.
#
# ## Stages
#
# `ls.stages` fits the curve with its errors, and those of neighbours go together, because all
# checkpoints were sampled with the same noise. It says how many corners the curve has, where, and
# how surely. It refuses fewer than 20 checkpoints; ours are just enough.

# %%
stages = ls.stages(llc, loss=loss.sel(pattern="all"), sublosses=loss)
one = stages.isel(component=0)
print(one[["start", "end", "type", "slope"]].to_dataframe().round(2).to_string())
print()
columns = ["boundary_step", "boundary_step_low", "boundary_step_high", "support"]
print(one[columns].to_dataframe().round(2).to_string())
types = [str(word) for word in one["type"].values]
assert types[0] == "plateau" and "A" in types
ls.plot(stages)

# %% [markdown]
# - First a **plateau**: λ̂ is near zero, though the loss already falls a little. Whatever the model
#   learns there (which tokens exist) needs hardly any of its weights to be just so.
# - Then **A**: the loss falls and λ̂ rises. The model buys a lower loss with a more complex
#   function, at first slowly, then, if the boundary is sure enough to be claimed, in a much steeper
#   stage.
# - Where the steep fall of the loss ends, λ̂ turns and falls, by more than its standard error. If
#   it clearly falls while the loss does, that is type **B**: the same work is done with fewer
#   constraints. (*unclear* means that so few points with so much noise do not decide.)
#
# **Look at** the coloured intervals of the boundaries. They are wide where checkpoints are rare;
# that is what more checkpoints are for.
#
# ## Which losses fell, and when
#
# `induction` are the tokens that an earlier part of the sequence tells. `ls.transitions` finds
# where a curve changes fastest and when that begins and ends.

# %%
moved = ls.transitions(loss, se=found["sublosses"]["se"].sel(probe="repeats", drop=True))
columns = ["begin", "midpoint", "midpoint_low", "midpoint_high", "end", "change"]
print(moved[columns].to_dataframe().round(1).to_string())
ls.plot(moved)

# %% [markdown]
# ## Who did it?
#
# The same sweep measured where each head looks. `prefix_matching` is the share of attention on the
# token *after* the earlier copy of the present one: what an induction head does.

# %%
behaviour = found["behaviour_scores"].to_dataset()
both = behaviour[["previous_token", "previous_token_se", "prefix_matching", "prefix_matching_se"]]
ls.plot_curves(both, one)

# %%
before, after = (behaviour.sel(checkpoint=run.nearest(step)) for step in (300, N_STEPS))
change = after["prefix_matching"] - before["prefix_matching"]
first = str((after["previous_token"] - before["previous_token"]).idxmax().values)
print("look back one token:", first, "  find the earlier copy:", *(
    str(name) for name in change["component"].values[change.values > 0.4]
))  # fmt: skip
assert first.startswith("L0") and float(change.sel(component=["L1H0", "L1H1"]).max()) > 0.5

# %% [markdown]
# So that was the steep fall of the loss: an induction circuit. Before it, the heads of layer 1
# attend a little to all that was seen (the shortcut); then **one** head of layer 0 turns to the
# previous token, both heads of layer 1 follow, and λ̂ of the whole model is largest when they have
# arrived. After that the head that looks back still grows sharper while λ̂ falls: it got *simpler*
# to do, not less done.
#
# Attention alone does not show that the circuit is *used*. Ablations do: `ls.construction`, in
# tutorial 7.
#
# ## Go on later
#
# Everything lies in `path`. The same call after a crash, or with more checkpoints, does what is
# missing and no more:

# %%
start = time.perf_counter()
again = ls.develop(
    run, tokens, "full", settings=settings, probes={"repeats": probe},
    path=folder / "sweep", progress=False,
)  # fmt: skip
print(f"{time.perf_counter() - start:.0f} s")
assert again["refined_llc"]["llc"].equals(found["refined_llc"]["llc"])

# %% [markdown]
# And a page with all of it, which opens in any browser without a network:

# %%
view = ls.read_development(found, progress=False)
page = ls.write_report(view, folder / "report.html")
print(page.name, f"{page.stat().st_size / 2**20:.0f} MB")
for name, why in view.refused.items():
    print(f"no {name}: {why}")

# %% [markdown]
# Parts that cannot be read say why. Heads were not sampled here, so nothing is said of theirs.
#
# ## What a real run would use
#
# | | here | for a result |
# |---|---|---|
# | checkpoints | 20 | 40 to 60: `checkpoint_schedule(n_steps, n=40)`, `extra=20` |
# | draws, chains | 40, 2 | 200, 4 (`ls.Settings()`), then look at certificates |
# | components | `full` | `full` and `heads` |
# | seeds | 1 | 3: a stage that one seed has is an anecdote |
# | where | one process | `parallel=4`, or `"dask"`, `"ray"` on a cluster |
#
# `ls.plan_development(run, tokens, "heads", minutes=60)` says what fits an hour, and from the
# command line all of it is
# `lens-slt develop --model runs/mine --data tokens.npy --out runs/development --minutes 60`.
#
# ## Limits
#
# - Checkpoints are saved in half precision (`precision="full"` for more). That is far finer than
#   the spread of draws.
# - λ̂ belongs to one localization γ. Weights grow in training, and a fixed γ holds ever less of
#   them in place; `develop(..., gammas=[50, 800])` measures a few checkpoints at others.
# - A corner is a fact about a curve. Which circuit formed there is for interventions to say.
#
# ## Exercises
#
# 1. Set the period to 12 in every sequence. The heads can now count positions back instead of
#    looking for a copy. Which curves change, and which stage is gone?
# 2. Train with another `seed` in the configuration. Which head looks back this time, and how far do
#    the boundaries move compared with their intervals?
# 3. Save with `extra=0` and `n=20`. How much wider are the intervals around the steep fall?
