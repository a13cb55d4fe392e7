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
# If we know how a model answers to its data, we can choose data that make it grow the structure we
# want (*patterning*, [arXiv 2601.13548](https://arxiv.org/abs/2601.13548)). Here: from a checkpoint
# in which induction has not formed yet, choose weights for the training data that bring it sooner,
# or later, and train to see whether they do.
#
# No GPU, no download. Three to five minutes on two CPU cores.

# %%
try:
    import lens_slt as ls
except ImportError:
    # %pip install -q "lens-slt @ git+https://github.com/lens-slt/lens_slt"
    import lens_slt as ls

# %% [markdown]
# ## Before the transition
#
# The induction circuit of `attn-2l` forms between steps 2100 and 2500. At step 2100 no head matches
# prefixes yet.

# %%
import tempfile

import numpy as np
import pandas as pd
import torch

START = 2100
run = ls.checkpoints("attn-2l")
best = {}
for step in (1800, START, 2500):
    scores = ls.behaviour_scores(run.load(step), n_random=4)
    best[step] = {key: float(scores[key].max()) for key in ("previous_token", "prefix_matching")}
assert best[START]["prefix_matching"] < 0.2 < best[2500]["prefix_matching"]
pd.DataFrame(best).round(2)

# %% [markdown]
# ## What could the model be trained on?
#
# Text; random tokens said twice; and, as a control for the *tokens* of repetition, the same
# kind of rows in shuffled order. We watch the second halves of *other* random tokens said twice,
# which is what induction is for, their first halves, and text.

# %%
LENGTH, HALF = 65, 32
GROUPS = ("text", "said twice", "shuffled")


def said_twice(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    segment = torch.randint(1, 512, (n, HALF), generator=generator)
    return torch.cat([torch.zeros(n, 1, dtype=torch.long), segment, segment], 1)


def shuffled(tokens: torch.Tensor) -> torch.Tensor:
    order = torch.rand(len(tokens), 2 * HALF, generator=torch.Generator().manual_seed(0))
    return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, order.argsort(1))], 1)


def corpus(n: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    text = ls.load_tokens("mix", n_sequences=6 * n, length=LENGTH, seed=seed)
    parts = [text, said_twice(2 * n, seed), shuffled(said_twice(2 * n, seed + 1))]
    return torch.cat(parts), np.repeat(np.arange(3), [len(part) for part in parts])


again = said_twice(24, seed=99)
second = torch.zeros(24, 2 * HALF)
second[:, HALF:] = 1
watched = {
    "second_halves": ls.Probe(again, weights=second),
    "first_halves": ls.Probe(again, weights=1 - second),
    "text": ls.Probe(ls.load_tokens("mix", n_sequences=24, length=LENGTH, seed=98)),
}

# %% [markdown]
# ## How the model answers to each group
#
# Draws of the local posterior of all heads say how each observable would change if a group had more
# weight, to first order: `ls.data_response`, from the covariance of the losses. With `groups` the
# response is pooled over each group, which has far less noise than that of single sequences.

# %%
candidates, groups = corpus(16, seed=0)
model = run.load(START)
draws = ls.sample(
    model, candidates, "L0ATTN+L1ATTN", settings=ls.Settings(draws=100, batch_size=16),
    probes={"candidates": candidates, **watched}, progress=False,
)  # fmt: skip
names = {name: name for name in watched}
response = ls.data_response(draws, "candidates", names, groups=groups)
first = [int(np.flatnonzero(groups == g)[0]) for g in range(3)]
size = np.bincount(groups)
table = {
    name: [
        f"{n * float(one['response'][i]):+.3f} ± {n * float(one['se'][i]):.3f}"
        for i, n in zip(first, size, strict=True)
    ]
    for name, one in ((name, response.sel(observable=name)) for name in watched)
}
pd.DataFrame(table, index=pd.Index(GROUPS, name="nats if this group weighs twice as much"))

# %% [markdown]
# Most of what we see is not about induction: more random tokens of either kind help with random
# tokens of either half. So we wish for lower loss on second halves *while first halves stay*.

# %%
wish = {"second_halves": -0.05, "first_halves": 0.0}
chosen = ls.patterning(response, wish)
weights = dict(zip(GROUPS, chosen["weight"].values[first].round(2).tolist(), strict=True))
print(weights)
assert weights["said twice"] > weights["shuffled"]
ls.plot(chosen)

# %% [markdown]
# ## Did it come true?
#
# Small corpora are learned by heart, so we train on a larger one of the same groups: `like` names
# for each of its sequences the candidate whose weight it takes. Strength 1 is the wish, −1 its
# opposite, and both are compared with the usual data under the same randomness.

# %%
data, kinds = corpus(400, seed=1000)
check = ls.verify_patterning(
    model, data, response, wish, watched, steps=240, start=START, like=np.array(first)[kinds],
    strengths=(-1.0, 1.0), controls=(), seeds=(0, 1), path=tempfile.mkdtemp(), progress=False,
    levels={"second_halves": 5.5}, optimisation=ls.Optimisation(learning_rate=3e-3),
)  # fmt: skip
ls.plot(check)

# %%
realised = check["realised"].to_pandas()
assert realised.loc[1.0, "second_halves"] < realised.loc[-1.0, "second_halves"]
realised.round(2)
