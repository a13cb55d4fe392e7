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
# # 11. Hold back and hurry the induction circuit
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/lens-slt/lens_slt/blob/main/tutorials/11_grow_a_circuit.ipynb)
#
# Which data make a structure grow? From a checkpoint in which induction has not formed yet, we
# train on three times, with the same randomness and other weights of the data: as they are, without
# repeats, and with twice as many. Then we look into the three models.
#
# No GPU, no download. Two to four minutes on two CPU cores.

# %%
try:
    import lens_slt as ls
except ImportError:
    # %pip install -q "lens-slt @ git+https://github.com/lens-slt/lens_slt"
    import lens_slt as ls

# %% [markdown]
# ## Before the transition
#
# The induction circuit of `attn-2l` forms between steps 2100 and 2500 of its training: at 2100 no
# head attends to what followed the last time (*prefix matching*).

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

START = 2100
run = ls.checkpoints("attn-2l")
SCORES = ("previous_token", "prefix_matching")


def best(model):
    """The largest score of any head."""
    scores = ls.behaviour_scores(model, n_random=4)
    return {name: float(scores[name].max()) for name in SCORES}


before = {step: best(run.load(step)) for step in (1800, START, 2500)}
assert before[START]["prefix_matching"] < 0.2 < before[2500]["prefix_matching"]
pd.DataFrame(before).round(2)

# %% [markdown]
# ## The data, and what is watched
#
# Eight parts of text, one of random tokens said twice, and one of such rows in shuffled order,
# which have the *tokens* of repetition without the repetition. Watched are the second halves of
# other random tokens said twice, which is what induction is for; their first halves; and text.

# %%
LENGTH, HALF = 49, 24


def said_twice(n, seed):
    generator = torch.Generator().manual_seed(seed)
    segment = torch.randint(1, 512, (n, HALF), generator=generator)
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), segment, segment], 1)


def shuffled(tokens):
    order = torch.rand(len(tokens), 2 * HALF, generator=torch.Generator().manual_seed(0))
    return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, order.argsort(1))], 1)


GROUPS = ("text", "said twice", "shuffled")
parts = [
    ls.load_tokens("mix", n_sequences=6400, length=LENGTH, seed=1),
    said_twice(800, seed=2),
    shuffled(said_twice(800, seed=3)),
]
data, group = torch.cat(parts), np.repeat(np.arange(3), [len(part) for part in parts])

again = said_twice(32, seed=99)
second = torch.zeros(32, 2 * HALF)
second[:, HALF:] = 1
watched = {
    "second halves": ls.Probe(again, weights=second),
    "first halves": ls.Probe(again, weights=1 - second),
    "text": ls.Probe(ls.load_tokens("mix", n_sequences=32, length=LENGTH, seed=98)),
}

# %% [markdown]
# ## Three runs
#
# A weight says how often a sequence is drawn. Held back, shuffled rows take the place of repeats;
# hurried, repeats take the place of the shuffled rows. So all runs see the same tokens as often, and
# differ only in whether they come again. `ls.retrainings` gives all runs of a seed the same batches
# as far as their weights allow: what differs is due to the weights.

# %%
WEIGHTS = {  # of text, said twice, shuffled
    "usual": (1, 1, 1), "held back": (1, 0, 2), "hurried": (1, 2, 0),
}  # fmt: skip
runs = {name: np.take(w, group).astype(float) for name, w in WEIGHTS.items()}
folder = Path(tempfile.mkdtemp())
trained = ls.retrainings(
    run.load(START), data, runs, watched, steps=300, start=START, path=folder, seeds=[0],
    optimisation=ls.Optimisation(learning_rate=3e-3), progress=False,
)  # fmt: skip
ls.plot(trained)

# %% [markdown]
# When does each of them predict what comes again? `ls.reached` gives the step from which on a run
# stays beyond a level; NaN where it never is.

# %%
LEVEL = 5.0  # nats; 5.8 at the start
steps = ls.reached(trained, {"second halves": LEVEL})["step"].sel(observable="second halves")
steps = steps.isel(seed=0).to_series()
last = trained["value"].isel(checkpoint=-1, seed=0).to_pandas().round(2)
print(last.assign(**{f"below {LEVEL} from step": steps.round()}))

# %% [markdown]
# Hurried, the model predicts repeats long before the usual run does; held back, it never does, and
# has not even begun. On text they differ by some hundredths of a nat: the price is small.

# %%
assert steps["hurried"] < 2200
assert not steps["usual"] < steps["hurried"] + 50
assert np.isnan(steps["held back"]) and last.loc["held back", "second halves"] > 5.7
assert abs(last.loc["hurried", "text"] - last.loc["usual", "text"]) < 0.2

# %% [markdown]
# ## Is it the circuit?
#
# A lower loss could have another cause. Every run lies in `path/RUN/seed-N`, for `ls.checkpoints`.
# In the hurried model a head matches prefixes; and the circuit, previous-token head through the
# keys of the induction head, can be put on trial.

# %%
models = {name: ls.checkpoints(folder / name / "seed-0") for name in runs}
models = {name: one.load(one.steps[-1]) for name, one in models.items()}
after = pd.DataFrame({name: best(model) for name, model in models.items()})
assert after.loc["prefix_matching", "hurried"] > 0.3 > after.loc["prefix_matching", "held back"]
after.round(2)

# %%
scores = ls.behaviour_scores(models["hurried"], n_random=4)
writer, reader = (str(scores["component"].values[int(scores[name].argmax())]) for name in SCORES)
pattern = np.zeros((64, 2 * HALF), bool)
pattern[:, HALF + 1 :] = True
trials = {
    name: ls.cross_check(
        models[name],
        said_twice(64, seed=7),
        ls.circuit(f"{writer} -> {reader}.K", "repeats"),
        patterns=pattern,
        n_null=20,
        verdict_only=True,
        progress=False,
    )
    for name in ("hurried", "held back")
}
print(*trials.values(), sep="\n")
assert trials["held back"].verdict != "supported"

# %% [markdown]
# ## From a wish to weights
#
# Here we knew what repeats are for. `ls.data_response` asks the *local posterior* of a checkpoint
# how an observable answers to each kind of data, and `ls.patterning` turns a wish into weights
# ([arXiv 2601.13548](https://arxiv.org/abs/2601.13548)). Before a transition that is hard: the
# posterior sees what is there, and the circuit is not. With a few hundred candidates the response
# here is no more than its noise, and `ls.patterning` says so by its errors.
# `python -m benchmarks.patterning` takes the time for a response that can be seen, retrains over a
# ladder of strengths with controls, and compares what was predicted with what came true.
#
# - [Choose data that grows a structure](https://github.com/lens-slt/lens_slt/blob/main/docs/how-to/patterning.md)
# - [Benchmarks](https://github.com/lens-slt/lens_slt/blob/main/docs/benchmarks.md)
#
# ## Exercises
#
# 1. Hold back for 150 steps only (`{0: weights, 150: None}`). Does induction come as fast after it?
# 2. Leave the shuffled rows out of all runs. Does held back still mean never?
# 3. Sample L1 of the three models with `ls.sample`: which rLLC tells them apart first?
