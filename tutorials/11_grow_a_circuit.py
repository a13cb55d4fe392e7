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
# Which data make a structure grow? From a checkpoint in which induction has not formed yet, we
# train on three times, with the same randomness and other weights of the data: as they are, without
# repeats, and with twice as many. Then we look into the three models.
#
# No GPU, no download. Two to four minutes on two CPU cores.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %% [markdown]
# ## Before the transition
#
# The induction circuit of `attn-2l` forms between steps 2100 and 2500 of its training: L0H2 attends
# to the previous token, and L1H2 to what followed the last time (*prefix matching*). At step 2200
# it has hardly begun.

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

START = 2200
LENGTH, HALF = 49, 24  # tokens of a row, and of its half
run = ls.checkpoints("attn-2l")
SCORES = ("previous_token", "prefix_matching")


def best(model):
    """The largest score of any head, and whose it is."""
    scores = ls.behaviour_scores(model, n_random=4, length=HALF)[list(SCORES)].to_dataframe()
    return {
        word: value for name in SCORES
        for word, value in ((name, scores[name].max()), (f"{name} in", scores[name].idxmax()))
    }  # fmt: skip


before = pd.DataFrame({step: best(run.load(step)) for step in (1800, START, 2500)})
assert before.loc["prefix_matching", START] < 0.5 < before.loc["prefix_matching", 2500]
before

# %% [markdown]
# ## The data, and what is watched
#
# Half is text, a quarter random tokens that come again and again, after another distance in every
# row, and a quarter such rows in shuffled order, which have the *tokens* of repetition without the
# repetition. Watched are the second halves of other random tokens said twice, which is what
# induction is for; their first halves; and text.


# %%
def said_again(n, seed, shortest=6):
    """Rows of a BOS and of random tokens that come again after ``shortest`` to HALF tokens."""
    generator = torch.Generator().manual_seed(seed)
    segment = torch.randint(1, 512, (n, HALF), generator=generator)
    period = torch.randint(shortest, HALF + 1, (n, 1), generator=generator)
    rows = segment.gather(1, torch.arange(2 * HALF) % period)
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), rows], 1)


def shuffled(tokens):
    order = torch.rand(len(tokens), 2 * HALF, generator=torch.Generator().manual_seed(0))
    return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, order.argsort(1))], 1)


parts = [
    ls.load_tokens("mix", n_sequences=4000, length=LENGTH, seed=1),
    said_again(2000, seed=2),
    shuffled(said_again(2000, seed=3)),
]
data, group = torch.cat(parts), np.repeat(np.arange(3), [len(part) for part in parts])

again = said_again(32, seed=99, shortest=HALF)
second = torch.zeros(32, 2 * HALF)
second[:, HALF:] = 1
watched = {
    "second halves": ls.Probe(again, weights=second),
    "first halves": ls.Probe(again, weights=1 - second),
    "text": ls.Probe(ls.load_tokens("mix", n_sequences=32, length=LENGTH, without=parts[0])),
}

# %% [markdown]
# ## Three runs
#
# A weight says how often a sequence is drawn. Held back, shuffled rows take the place of repeats;
# hurried, repeats take the place of the shuffled rows. So all runs see the same tokens as often,
# and differ only in whether they come again. `ls.retrainings` gives all runs of a seed the same
# batches as far as their weights allow: what differs is due to the weights.

# %%
WEIGHTS = {  # of text, said again, shuffled
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
LEVEL = 4.5  # nats; 5.4 at the start
steps = ls.reached(trained, {"second halves": LEVEL})["step"].sel(observable="second halves")
steps = steps.isel(seed=0).to_series()
last = trained["value"].isel(checkpoint=-1, seed=0).to_pandas().round(2)
print(last.assign(**{f"below {LEVEL} from step": steps.round()}))

# %% [markdown]
# Hurried, the model predicts what comes again a hundred steps before the usual run; held back, it
# loses what it had of it. On text the three differ by about a tenth of a nat. First halves, where
# nothing comes again, are dearer for the hurried model: it looks for repeats there, too.

# %%
assert steps["hurried"] + 50 < steps["usual"] and np.isnan(steps["held back"])
assert last.loc["held back", "second halves"] > 5.5
assert last["text"].max() - last["text"].min() < 0.25

# %% [markdown]
# ## Is it the circuit?
#
# A lower loss could have another cause. Where all repeats have one distance, a model learns to look
# back that far, whatever the tokens are, and the loss falls even faster. So we look at the heads.
# Every run lies in `path/RUN/seed-N`, for `ls.checkpoints`.

# %%
models = {name: ls.checkpoints(folder / name / "seed-0") for name in runs}
models = {name: one.load(one.steps[-1]) for name, one in models.items()}
after = pd.DataFrame({name: best(model) for name, model in models.items()})
assert (
    after.loc["prefix_matching", "hurried"] > 0.7 > 0.2 > after.loc["prefix_matching", "held back"]
)
assert after.loc["prefix_matching in", "hurried"] == "L1H2"
after

# %% [markdown]
# The heads are those of the shipped model, only sooner: where the circuit will be was settled
# before. The path from one to the other, through the keys, can be put on trial in each model.

# %%
tokens = said_again(64, seed=7, shortest=HALF)
repeats = np.zeros((64, 2 * HALF), bool)
repeats[:, HALF + 1 :] = True
for name, model in models.items():
    trial = ls.cross_check(
        model, tokens, ls.circuit("L0H2 -> L1H2.K", "repeats"), patterns=repeats, n_null=20,
        verdict_only=True, progress=False,
    )  # fmt: skip
    print(f"{name}: {trial}", end="\n\n")
    assert name != "held back" or trial.verdict != "supported"

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
# - [Choose data that grows a structure](../docs/how-to/patterning.md)
# - [Benchmarks](../docs/benchmarks.md)
#
# ## Exercises
#
# 1. Hold back for 150 steps only (`{0: weights, 150: None}`). Does induction come as fast after it?
# 2. Give all repeats one distance (`shortest=HALF`). The loss on second halves falls as fast; which
#    of the checks above tells that this is no induction?
# 3. Sample L1 of the three models with `ls.sample`: which rLLC tells them apart first?
