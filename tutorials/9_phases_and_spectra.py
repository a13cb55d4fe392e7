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
# # 9. Phases and spectra
#
# Two things that the learning coefficient is *for*. First: with more data a Bayesian moves from
# simple solutions to accurate ones, and λ says when. We look at that in a model whose phases are
# known, the toy model of superposition. Second: what is λ̂ of a head at one temperature, and what
# does it become as the temperature falls? We look at the induction head of `attn-2l` before and
# after it forms.
#
# No GPU, no download. One to two minutes on two CPU cores.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %% [markdown]
# ## Part 1: phases of a model that we know
#
# Six features, two hidden dimensions. The model has to put the features on a plane, and its best
# solutions are regular polygons: each corner is the direction of a feature. `toy.polygon` searches
# the critical point near one.

# %%
import pandas as pd
import plotly.express as px
import torch

from lens_slt.phases.toys.superposition import Superposition

toy = Superposition()
polygons = {corners: toy.polygon(corners) for corners in (4, 5, 6)}
pd.DataFrame(
    {
        "kind": {c: toy.describe(p.weights) for c, p in polygons.items()},
        "loss": {c: p.loss for c, p in polygons.items()},
        "λ in theory": {c: p.rank / 2 for c, p in polygons.items()},
    }
).rename_axis("corners")

# %% [markdown]
# These are minima up to symmetries, so λ is half the rank of the Hessian: 7 for the pentagon, 8.5
# for the hexagon. (The square's family is larger than its Hessian shows; we leave it out.) The
# hexagon has the lower loss *and* the larger λ: more accurate, more complex. Who wins depends on
# how much data there is. The free energy of a phase is
#
# *F(n) = n·L + λ·log n + c*,
#
# and the phase with the lower one has the larger share of the posterior.

# %%
theory = {
    corners: ls.Phase(
        name, loss=polygons[corners].loss, llc=llc,
        constant=toy.prior_constant(polygons[corners].weights),
    )
    for corners, name, llc in ((5, "pentagon", 7.0), (6, "hexagon", 8.5))
}  # fmt: skip
crossed = ls.crossing(theory[5], theory[6])
print("they cross at n =", crossed["n"].values.round(1))
assert abs(float(crossed["n"][0]) - 601) < 1
ls.plot(crossed)

# %% [markdown]
# Below 601 data the pentagon, above it the hexagon: a **Bayesian phase transition**, of n.
#
# ### From measured λ̂
#
# In your model nobody knows λ. `limit_llc` takes it from λ̂ at rising nβ/γ: the localization holds
# back every direction that is softer than γ/nβ, so the limit is what counts. The same sampler and
# the same certificate as for a transformer, on a function of flat weights.

# %%
rungs = [
    ls.refined_llc(
        ls.sample_function(
            toy.loss, polygons[5].weights,
            settings=ls.Settings(n_beta=100 * ratio, gamma=100, target_se=0.04),
        )
    )
    for ratio in (10, 30, 100)
]  # fmt: skip
limit = ls.limit_llc(rungs)
assert abs(float(limit["llc"][0]) - 7) < 0.1 * 7
print([f"{float(rung['llc'][0]):.2f}" for rung in rungs], "→", f"{float(limit['llc'][0]):.2f}")
ls.plot(limit)

# %% [markdown]
# At the lowest rung λ̂ is far below 7: at nβ 30 and γ 200, where refined LLCs of transformers are
# usually measured, it is lower still. A refined LLC ranks components; put into a free energy it
# would give the crossing of the *local* posterior, and `ls.crossing` says so.
#
# ### What training does
#
# Gradient descent has phases, too, but it moves through them in *time*, not in *n*. Forty runs of
# SGD from small weights:

# %%
runs, steps = 40, 4000
generator = torch.Generator().manual_seed(0)
weights = torch.randn(runs, toy.n_parameters, generator=generator) * 0.3
weights[:, 12:] = 0  # biases
weights.requires_grad_(True)
seen = {}
for step in range(steps + 1):
    feature = torch.randint(6, (runs, 16), generator=generator)
    size = torch.rand(runs, 16, 1, generator=generator)
    rows = torch.nn.functional.one_hot(feature, 6) * size
    (gradient,) = torch.autograd.grad(toy.row_loss(weights, rows).sum(), weights)
    with torch.no_grad():
        weights -= 0.05 * gradient
    if step % 100 == 0:
        seen[step] = toy.loss(weights.detach()).numpy()

curves = pd.DataFrame(seen).T.rename_axis("step").reset_index().melt("step", value_name="loss")
figure = px.line(curves, x="step", y="loss", line_group="variable", range_y=[0.03, 0.2])
figure.update_traces(opacity=0.4)
for corners, positive in ((4, 0), (4, 2), (5, 0), (5, 1), (6, 0)):
    point = toy.polygon(corners, positive)
    name = toy.describe(point.weights)
    figure.add_hline(y=point.loss, line_dash="dot", annotation_text=name)
figure.update_layout(template="plotly_white", title="Dynamical transitions: losses of 40 runs")
figure.show()
ends = seen[steps]
assert (ends > 0.9 * polygons[6].loss).all()

# %% [markdown]
# Runs rest on plateaus and leave them for lower ones. (A + is a feature without a direction but
# with a bias of its own, a vestige.) But none that sits in the pentagon ever leaves it for the
# hexagon: the pentagon is a minimum, and nothing drives SGD across. The Bayesian
# transition at n = 601 has no dynamical counterpart. lens_slt keeps the two apart: `crossing` and
# `phase_diagram` are of n, `stages` and `transitions` of training steps.

# %% [markdown]
# ## Part 2: the spectrum of an induction head
#
# λ̂ of a head at one nβ and γ counts the directions that are stiffer than γ/nβ. Over a ladder of nβ
# it becomes a curve: how many directions of the head are stiff, and how many are soft. `L1H2` is
# the induction head of `attn-2l` (tutorial 7). Step 1000 is before the transition, step 2900 after
# it.

# %%
run = ls.checkpoints("attn-2l")
tokens = ls.load_tokens("mix", n_sequences=24, length=48)
settings = ls.Settings(draws=60)
ladder = {"n_betas": [10, 30, 100], "gammas": [200]}
spectra = {
    step: ls.spectrum(
        ls.sample_ladder(
            run.load(step), tokens, "L1H2", settings=settings, progress=False, **ladder
        ),
        trust=True,
    )
    for step in (1000, 2900)
}
both = ls.join_checkpoints(spectra)
ls.plot(both)

# %%
columns = ["llc", "se", "stiffness", "effective_directions"]
table = both[columns].sel(gamma=200).to_dataframe()[columns].round(2).unstack("checkpoint")
before, after = (table.loc[(100, "L1H2"), ("stiffness", step)] for step in spectra)
assert after > 2 * before
table

# %% [markdown]
# `llc` rises with nβ, because ever softer directions count; nothing here is a plateau, so none of
# these numbers is *the* learning coefficient. `stiffness` says whether λ̂ is made of few stiff
# directions (near 1) or of many soft ones (near 0), and `effective_directions` how many share it.
# Before it forms the head is soft everywhere. Afterwards about as many directions share λ̂, fifteen
# to twenty-five, but now they are stiff: those hold the circuit. For λ and its multiplicity we ask,
# and get the honest answer:

# %%
for step, found in spectra.items():
    told = ls.multiplicity(found, trust=True)
    print(f"step {step}: {told['verdict'].values[0, 0]}")

# %% [markdown]
# ### Where the training went
#
# One question more: what does the loss look like along the directions in which the head *moves*
# between steps 2100 and 2600, in the middle of the transition? `sample` can be restricted to them.
# As a control we take as many random directions.

# %%
rows = {}
for name, seed in (("where it moved", None), ("random", 0)):
    moved = ls.moved_directions(run.load(2100), run.load(2600), "L1H2", random=seed)
    draws = ls.sample(
        run.load(2600), tokens, "L1H2", directions=moved["directions"],
        settings=ls.Settings(n_beta=300, gamma=100, draws=60), progress=False,
    )  # fmt: skip
    found = ls.refined_llc(draws).isel(component=0)
    rows[name] = {
        "directions": int(found["n_parameters"]),
        "share of the change": f"{float(moved['captured'][0]):.0%}",
        "λ̂": f"{float(found['llc']):.2f} ± {float(found['se']):.2f}",
    }
assert "-" in rows["where it moved"]["λ̂"]
pd.DataFrame(rows).T

# %% [markdown]
# Along random directions the loss is nearly flat. Along those of the transition λ̂ is *below
# zero*: draws find a lower loss than the weights have. At step 2600 the head is still on its way,
# and these sixteen directions of thousands point downhill. That is no phase, and `ls.phase` would
# refuse it.
#
# ## Where to go from here
#
# - [Phases and free energies](../docs/concepts/phases.md)
#   for crossings with intervals, patterns and phase diagrams; `lens-slt phases` on a folder of
#   `lens-slt develop`.
# - [Spectra](../docs/concepts/spectrum.md) for
#   what λ̂ over nβ can and cannot tell; `lens-slt spectrum` on the command line.
