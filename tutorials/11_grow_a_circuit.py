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
# in which induction has not formed yet, choose weights for the training data that bring it sooner, or
# later, and train to see whether they do.
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
# prefixes yet, and the second half of random tokens said twice is as hard as the first.

# %%
import pandas as pd

START, LENGTH = 2100, 64
run = ls.checkpoints("attn-2l")
scores = {step: ls.behaviour_scores(run.load(step), n_random=4) for step in (1800, 2100, 2500)}
best = {
    step: {name: float(found[name].max()) for name in ("previous_token", "prefix_matching")}
    for step, found in scores.items()
}
assert best[2100]["prefix_matching"] < 0.2 < best[2500]["prefix_matching"]
pd.DataFrame(best).round(2)

# %% [markdown]
# ## What could the model be trained on?
#
# Text, and text that is said twice. As a control for the *tokens* of repetition there is the same
# kind of rows in shuffled order. We look at four things: the second halves of random tokens said
# twice, which is what induction is for and what nobody trains on here; their first halves; code and
# prose.

# %%
import numpy as np
import torch

generator = torch.Generator().manual_seed(0)
GROUPS = ("text", "said twice", "shuffled")


def rows(n: int, seed: int) -> torch.Tensor:
    return ls.load_tokens("mix", n_sequences=n, length=LENGTH, seed=seed)


def twice(tokens: torch.Tensor) -> torch.Tensor:
    half = LENGTH // 2
    return torch.cat([tokens[:, :half], tokens[:, 1 : half + 1]], 1)


def shuffled(tokens: torch.Tensor) -> torch.Tensor:
    order = torch.rand(len(tokens), LENGTH - 1, generator=generator).argsort(1)
    return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, order)], 1)


def corpus(n: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    parts = [rows(6 * n, seed), twice(rows(2 * n, seed + 1)), shuffled(twice(rows(2 * n, seed + 2)))]
    return torch.cat(parts), np.repeat(np.arange(3), [len(part) for part in parts])


again = ls.make_prompts("repeat", n=32, length=LENGTH, seed=3) if False else None
