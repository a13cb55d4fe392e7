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
# # 10. Three seeds, one anatomy
#
# The same architecture, the same data, three seeds. Heads have other numbers in each model: which
# head of one is which of another? And is a match more than a similar picture? Here we match heads
# by what their refined LLCs say token by token and by where they attend, and then put the match on
# trial: a circuit found in one model has to work in the other.
#
# No GPU, no download. About two minutes on two CPU cores.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %% [markdown]
# ## What we would like to find
#
# Behaviours on random tokens say which heads look at the previous token, and which at what followed
# an earlier occurrence (induction). That is the answer to compare with: no match below uses it.

# %%
import pandas as pd

names = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2")
models = {name: ls.load_model(name) for name in names}
behaviours = {name: ls.behaviour_scores(model) for name, model in models.items()}
roles = {
    name: dict(zip(found["component"].values, found["head_type"].values, strict=True))
    for name, found in behaviours.items()
}
pd.DataFrame(roles)

# %% [markdown]
# ## Measure each model on the same tokens
#
# The models get *different* sampling seeds. Noise is drawn per seed and component name, so with one
# seed heads of equal names would share their noise, and would match because of that; `ls.match`
# refuses it.

# %%
text = ls.load_tokens("mix", n_sequences=128, length=48)
probe = ls.load_tokens("mix", n_sequences=24, length=48, without=text)
measured = {}
for seed, (name, model) in enumerate(models.items()):
    settings = ls.Settings(draws=30, batch_size=8, thin=2, seed=seed)
    draws = ls.sample(
        model, text, "heads", settings=settings, probes={"text": probe}, progress=False
    )
    measured[name] = {
        "rllc": ls.per_token_llc(draws),
        "attention": ls.attention_patterns(model, probe[:16]),
    }

# %% [markdown]
# ## Match
#
# Similarities are corrected for how reliable each head's values are (its two halves of the draws),
# what all heads share is taken out, and p-values come from permuting whole sequences of one model.
# A head without a partner is said to have none; one whose likest is the partner of another shares
# it, as models have different numbers of heads of a kind.

# %%
matched = ls.match(measured[names[0]], measured[names[1]])
ls.plot(matched)

# %%
table = matched[["partner", "similarity", "p", "verdict"]].to_dataframe()
table["role here"] = [roles[names[0]][head] for head in table.index]
table["role there"] = [roles[names[1]].get(head, "") for head in table["partner"]]
table

# %% [markdown]
# Of the heads with a role, how many partners have the same one?

# %%
special = table[table["role here"].isin(["previous token", "induction"])]
assert (special["role here"] == special["role there"]).mean() >= 0.5
special

# %% [markdown]
# ## A control: the model before training
#
# At step 0 nothing has been learned. A method that finds partners there finds them anywhere. (Here
# by attention alone, which takes no sampling; `benchmarks.universality` samples untrained models.)

# %%
raw = ls.checkpoints("attn-2l").load(0)
control = ls.match(
    {"attention": measured[names[0]]["attention"]},
    {"attention": ls.attention_patterns(raw, probe[:16])},
)
n_false = int(control["verdict"].isin(["matched", "shared"]).sum())
assert n_false <= 2
print(f"matched to heads of the untrained model: {n_false} of {control.sizes['component']}")

# %% [markdown]
# ## Does the circuit carry over?
#
# In `attn-2l` trials support the circuit from the previous-token head to the induction head through
# its keys (tutorial 4). `ls.transfer` maps it by the match and puts it on trial in the other model,
# and beside it every map to heads of the same layers: if many of those were supported too, the
# match would not have been needed.

# %%
best = {
    score: str(behaviours[names[0]]["component"].values[behaviours[names[0]][score].argmax()])
    for score in ("previous_token", "prefix_matching")
}
circuit = ls.circuit(f"{best['previous_token']} -> {best['prefix_matching']}.K", "induction")
tokens = ls.load_tokens("mix", n_sequences=32, length=48, without=[text, probe])
carried = ls.transfer([circuit], matched, models[names[1]], tokens, n_null=20, progress=False)
done = carried.summary.isel(circuit=0)
print(f"{circuit}  ⇒  {done['mapped'].values}: {done['verdict'].values}")
print(f"under random maps of the same layers: {float(done['chance']):.3f} are supported")
assert str(done["verdict"].values) == "supported" and float(done["chance"]) < 0.2
ls.plot(carried.summary)

# %% [markdown]
# ## Three models at once
#
# `ls.match_family` matches all pairs and puts together what agrees: groups of heads, the most
# widespread first. Those in all three models are the anatomy that these models share; the others
# are what one seed made and another did not.

# %%
family = ls.match_family(measured)
ls.plot(family)

# %%
shared = family["member"].to_pandas()
shared["models"] = family["n_models"].values
shared["agreement"] = family["agreement"].values.round(2)
assert (shared["models"] == 3).any()
shared[shared["models"] > 1]

# %% [markdown]
# ## Where to go from here
#
# - [Find the same heads in another model](../docs/how-to/two-models.md):
#   verdicts, other kinds of evidence, `lens-slt match`.
# - [Choose data that grows a structure](../docs/how-to/patterning.md).
