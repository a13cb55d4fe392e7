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
# # 6. Alongside TransformerLens
#
# lens_slt says *where to look*; TransformerLens shows *what is there*. Here heads with high rLLC go
# through the usual tools: caches and hooks, attention patterns, head detectors, `FactoredMatrix`,
# activation patching. Where both have an answer to the same question, we compare.
#
# Every cell runs on `HookedTransformer` (TransformerLens up to 3.x) and on `TransformerBridge` (3.x
# and 4.x) alike. A minute on two CPU cores.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %%
import contextlib
import io

import pandas as pd
import torch
from transformer_lens import FactoredMatrix, patching
from transformer_lens.head_detector import detect_head

model = ls.load_model("attn-2l")
HEADS = [f"L{layer}H{head}" for layer in range(2) for head in range(8)]
print(type(model).__name__)

# %% [markdown]
# ## Where to look
#
# A short run, with a probe that only induction can predict: 24 random tokens, said twice.

# %%
N, HALF = 16, 24
generator = torch.Generator().manual_seed(0)
drawn = torch.stack([torch.randperm(511, generator=generator)[: 2 * HALF] + 1 for _ in range(N)])
said, unrelated = drawn[:, :HALF], drawn[:, HALF:]
bos = torch.zeros(N, 1, dtype=torch.long)
clean = torch.cat([bos, said, said], dim=1)

tokens = ls.load_tokens("mix", n_sequences=128, length=64)
settings = ls.Settings(draws=60, batch_size=8, thin=4)
draws = ls.sample(
    model, tokens, "heads", settings=settings, probes={"said_twice": clean}, progress=False
)
llc = ls.refined_llc(draws)
table = pd.DataFrame(
    {
        "λ̂ on text": llc["llc"].to_series(),
        "λ̂ said twice": llc["probe_llc"].sel(probe="said_twice").to_series(),
        "SE": llc["probe_se"].sel(probe="said_twice").to_series(),
    }
)
table.sort_values("λ̂ said twice", ascending=False).head(5).round(2)

# %%
in_layer_1 = table.loc[HEADS[8:]].sort_values("λ̂ said twice", ascending=False)
first, second = in_layer_1.iloc[0], in_layer_1.iloc[1]
assert in_layer_1.index[0] == "L1H2"
assert first["λ̂ said twice"] - second["λ̂ said twice"] > 3 * (first["SE"] + second["SE"])

# %% [markdown]
# In layer 1 one head carries nearly all of it: `L1H2`. What does it do?
#
# ## What it attends to
#
# `ls.show_attention` shows TransformerLens's `hook_pattern` with CircuitsVis. Hover over a token to
# see where heads look from there. (CircuitsVis loads its script from the network when shown;
# offline it is embedded.)

# %%
code = "def add(first, second):\n    return add(first, second) + add(first, second)\n"
text = model.to_tokens(code)
ls.show_attention(model, text, ["L0H2", "L1H2"])

# %% [markdown]
# **Look at** `L0H2`: one line just under the diagonal, always the token before. `L1H2`: two fainter
# lines further down. From the repeated `add(first, second)` it looks at what came *after* the same
# token earlier, and where there is nothing to find, at the first token.
#
# The same by hand, as numbers: attention to what followed an earlier occurrence, from the positions
# that have one, and attention to the first token from those that have none.

# %%
_, cache = model.run_with_cache(text, names_filter=lambda name: name.endswith("hook_pattern"))
previous = cache["blocks.0.attn.hook_pattern"][0, 2].diagonal(-1).mean().item()
induction = cache["blocks.1.attn.hook_pattern"][0, 2]
same = text[0][:, None] == text[0][None, :]  # [query, key]
followed = torch.zeros_like(same)
followed[:, 1:] = same[:, :-1]  # keys whose previous token is the query's
followed &= torch.ones_like(same).tril(0)
has_one = followed.any(1)
found = (induction * followed).sum(1)[has_one].mean().item()
resting = induction[~has_one][1:, 0].mean().item()
print(f"L0H2: {previous:.2f} to the token before")
print(f"L1H2: {found:.2f} to what followed, {resting:.2f} to the first token otherwise")
assert previous > 0.95 and found > 0.25 and resting > 0.8

# %% [markdown]
# ## Head detectors
#
# TransformerLens's `detect_head` compares patterns on a text with an ideal. `ls.behaviour_scores`
# uses the same ideals on many sequences, with standard errors, and for induction on random tokens
# said twice, where no bigram can pass for induction.

# %%
scores = ls.behaviour_scores(model, tokens)
detected = pd.DataFrame(
    {
        "previous token, detect_head": detect_head(model, code, "previous_token_head").flatten(),
        "previous token": scores["previous_token"].values,
        "induction, detect_head": detect_head(model, code, "induction_head").flatten(),
        "prefix matching": scores["prefix_matching"].values,
        "± SE": scores["prefix_matching_se"].values,
        "type": scores["head_type"].values,
    },
    index=HEADS,
)
assert detected.iloc[:, :2].astype(float).idxmax().tolist() == ["L0H2", "L0H2"]
assert detected.iloc[:, 2:4].astype(float).idxmax().tolist() == ["L1H2", "L1H2"]
detected.round(3)

# %% [markdown]
# They agree on which heads. The size differs: on a short text most tokens have no earlier
# occurrence, so that even a perfect induction head scores low with `detect_head`, which averages
# over all of them.
#
# On the very same sequence both give the same number (`detect_head` counts the first position too,
# so its mean is over one more):

# %%
one = ls.behaviour_scores(model, text, n_random=2)["previous_token"].values
n = text.shape[1]
theirs = detect_head(model, code, "previous_token_head").flatten()
print("equal:", torch.allclose(torch.tensor(one).float() * (n - 1) / n, theirs, atol=1e-4))
assert torch.allclose(torch.tensor(one).float() * (n - 1) / n, theirs, atol=1e-4)

# %% [markdown]
# ## Composition with FactoredMatrix
#
# Does `L1H2` read through its keys what `L0H2` writes? Elhage et al.'s score is ‖W_OV·W_QKᵀ‖ /
# (‖W_OV‖·‖W_QK‖), for matrices of rank d_head that `FactoredMatrix` never multiplies out.


# %%
def weight(name, layer, head):
    return getattr(model.blocks[layer].attn, f"W_{name}")[head].detach()


def score(written, read):
    return ((written @ read).norm() / (written.norm() * read.norm())).item()


def centred(matrix):
    """As it acts after the norm, which takes the mean over the residual stream out."""
    return matrix - matrix.mean(0, keepdim=True)


plain = score(
    FactoredMatrix(weight("V", 0, 2), weight("O", 0, 2)),
    FactoredMatrix(weight("K", 1, 2), weight("Q", 1, 2).T),
)
by_hand = score(
    FactoredMatrix(centred(weight("V", 0, 2)), weight("O", 0, 2)),
    FactoredMatrix(centred(weight("K", 1, 2)), centred(weight("Q", 1, 2)).T),
)
everything = model.all_composition_scores("K")
everything = getattr(everything, "scores", everything)  # a bridge returns scores with labels
theirs = everything[0, 2, 1, 2].item()
edge = ls.composition_scores(model).sel(source="L0H2", target="L1H2", through="K")
print(f"by hand, raw weights         {plain:.4f}")
print(f"all_composition_scores       {theirs:.4f}")
print(f"by hand, norm folded in      {by_hand:.4f}")
print(f"ls.composition_scores        {float(edge['score']):.4f}")
print(f"z against the two nulls: {float(edge['z_random']):.0f} and {float(edge['z_rotation']):.0f}")
assert abs(plain - theirs) < 1e-4 and abs(by_hand - float(edge["score"])) < 1e-4

# %% [markdown]
# The first two are equal, and the last two: lens_slt folds in the norm between the heads (here it
# takes the mean out, a small difference), and adds what a bare score lacks, a comparison with
# chance.
#
# ## Hooks, and ls.ablate
#
# Mean ablation of `L1H2` by a hook of our own: replace its output `z` by its mean over all
# positions that predict something, and take the loss of every token.

# %%
test = ls.load_tokens("mix", n_sequences=16, seed=2)
inputs, targets = test[:, :-1], test[:, 1:]


def losses(logits):
    return -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].detach()


_, cache = model.run_with_cache(inputs, names_filter="blocks.1.attn.hook_z")
mean = cache["blocks.1.attn.hook_z"][:, :, 2].mean((0, 1))


def ablate_l1h2(z, hook):
    z = z.clone()
    z[:, :, 2] = mean
    return z


by_hook = losses(
    model.run_with_hooks(
        inputs, return_type="logits", fwd_hooks=[("blocks.1.attn.hook_z", ablate_l1h2)]
    )
)
ablated = ls.ablate(model, test, "L1H2", how="mean")
same = torch.allclose(by_hook, torch.tensor(ablated["loss"].values).float(), atol=1e-4)
print("ls.ablate is this hook:", same)
assert same

# %%
labels = ls.label_patterns(test).sel(pattern="induction").values
cost = ablated["effect"].values
print(
    f"induction tokens: {cost[labels].mean():+.2f} nats; others: {cost[~labels].mean():+.2f} nats"
)
assert cost[labels].mean() > 0.5 and -0.3 < cost[~labels].mean() < 0
ls.affected_tokens(ablated, n=5)

# %% [markdown]
# The ablation costs **induction tokens** (whose pair with the token before stood earlier in the
# sequence) a lot. The others gain a little on average: there the head insists on what came last
# time, and something else comes. **Look at** the tokens in « », the most affected of all, in
# context; the earlier occurrence may lie before what is shown.
#
# ## Activation patching, both ways
#
# In the **corrupted** sequences the first half is replaced, so that the second half repeats
# nothing. Patching puts one head's output `z` from one run into the other.
# `transformer_lens.patching` does it for all heads; we measure the mean log-probability of the
# second half.

# %%
corrupted = torch.cat([bos, unrelated, said], dim=1)


def log_probability(logits):
    # Of the second half, from its second token on: the first cannot be known.
    given = logits[:, HALF + 1 : -1].log_softmax(-1)
    return given.gather(-1, said[:, 1:, None]).mean()


def heads_only(name):
    return name.endswith("hook_z")


with torch.no_grad():
    clean_logits, clean_cache = model.run_with_cache(clean, names_filter=heads_only)
    corrupted_logits, corrupted_cache = model.run_with_cache(corrupted, names_filter=heads_only)
    best, worst = log_probability(clean_logits), log_probability(corrupted_logits)
    patch = patching.get_act_patch_attn_head_out_all_pos
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        restored = patch(model, corrupted, clean_cache, log_probability)
        broken = patch(model, clean, corrupted_cache, log_probability)
print(f"mean log-probability: clean {best:.2f}, corrupted {worst:.2f}")
table["restores"] = ((restored - worst) / (best - worst)).flatten().numpy()
table["breaks"] = ((best - broken) / (best - worst)).flatten().numpy()
table.sort_values("breaks", ascending=False).head(6).round(2)

# %%
assert table["restores"].idxmax() == "L1H2" and table.loc["L1H2", "restores"] > 0.8
assert table.loc["L0H2", "restores"] < -0.2
assert set(table["breaks"].nlargest(2).index) == {"L0H2", "L1H2"}
assert table["breaks"].nlargest(2).min() > 0.5 > 2 * table["breaks"].nlargest(3).iloc[-1]

# %% [markdown]
# - `restores`: the clean output in the corrupted run, as a share of what was lost. `L1H2` alone
#   brings nearly all back. `L0H2` makes it *worse*: it tells the induction head "here stood that
#   token", about places where now other tokens stand, and the head copies those.
# - `breaks`: the corrupted output in the clean run. Without the right output of **either** head,
#   induction is gone. No other head breaks as much as a quarter.
#
# One direction alone would have missed half of the circuit. And the rLLC, on this probe?

# %%
by_llc = table.sort_values("λ̂ said twice", ascending=False)
gap = by_llc["λ̂ said twice"].iloc[1] - by_llc["λ̂ said twice"].iloc[2]
assert list(by_llc.index[:2]) == ["L1H2", "L0H2"]
assert gap > 3 * (by_llc["SE"].iloc[1] + by_llc["SE"].iloc[2])
by_llc[["λ̂ said twice", "SE", "restores", "breaks"]].head(8).round(2)

# %% [markdown]
# The same two heads come first, with no clean and corrupted pair to be chosen. The rest differs: by
# λ̂ all other heads of layer 0 follow, well above those of layer 1, by patching they do little. The
# two ask different questions. Patching swaps one output for another that is just as ordinary; λ̂
# shakes the *weights*, and shaken heads of layer 0 disturb whatever layer 1 reads. So ask for what
# a head holds **beyond the median head of its layer**:

# %%
excess = table["λ̂ said twice"].copy()
for layer in ("L0", "L1"):
    members = [name for name in HEADS if name.startswith(layer)]
    excess[members] -= excess[members].median()
beyond = pd.DataFrame({"λ̂ beyond its layer": excess, "breaks": table["breaks"]})
beyond = beyond.sort_values("λ̂ beyond its layer", ascending=False)
assert list(beyond.index[:2]) == ["L1H2", "L0H2"]
rest = table.loc[[name for name in HEADS[:8] if name != "L0H2"], "λ̂ said twice"]
assert rest.min() > table.loc[HEADS[8:], "λ̂ said twice"].nlargest(2).iloc[1]
beyond.head(6).round(2)

# %% [markdown]
# ## What to take away
#
# - Caches, hooks, detectors, `FactoredMatrix` and patching work beside lens_slt as they always did:
#   it never changes the model.
# - Where both measure the same thing the numbers are the same: detectors, composition scores,
#   ablation.
# - lens_slt adds standard errors, chance levels, and a measure of weights rather than activations.
# - Patching depends on the direction; λ̂ on the layer. Neither is a verdict: that is [tutorial
#   4](4_circuits_on_trial.ipynb).
#
# ## Limits
#
# - Random tokens said twice are not text. Heads may do other things there.
# - `detect_head` wants text with the model's own tokenizer; `ls.behaviour_scores` takes token ids.
# - On TransformerLens 4 there is `TransformerBridge` only. What `HookedTransformer` offers beyond
#   it (`hook_result`, `hook_q_input`, …) is not used here, and lens_slt does not need it.
#
# ## Exercises
#
# 1. Patch keys only (`patching.get_act_patch_attn_head_k_all_pos`). Whose keys carry the
#    information?
# 2. Replace the mean in `ablate_l1h2` by zero and compare with `ls.ablate(..., how="zero")`. Which
#    ablation hurts more, and why?
# 3. Show the attention of `"L1H*"` on a sentence in which a name comes back. Which other heads find
#    it?
