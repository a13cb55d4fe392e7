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
# # 5. Your own model
#
# What changes when the model is not a shipped one: loading with unprocessed weights, tokens from
# your own text, which components, what it will cost, which settings, and a run that survives
# interruption.
#
# With `ONLINE = False` it runs anywhere, in under a minute, on small stand-ins of the same kinds.
# Set it to `True` to load GPT-2 small, `attn-only-2l` and Pythia from the Hugging Face hub instead.

# %%
try:
    import lens_slt as ls
except ImportError:
    source = input("Where is lens_slt? A folder, a wheel, or git+https://…: ")
    # %pip install -q "{source}"
    import lens_slt as ls

# %%
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
ONLINE = False
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Loading
#
# lens_slt takes any `HookedTransformer` (TransformerLens up to 3.x) or `TransformerBridge` (3.x and
# 4.x). One thing matters: **load weights as they were trained**. By default `from_pretrained` folds
# norms into weights and centres them. Predictions stay the same, rLLCs do not (below).
#
# | kind | unprocessed |
# |---|---|
# | `HookedTransformer` | `from_pretrained_no_processing(name)` |
# | `TransformerBridge` | `boot_transformers(name)`, without `enable_compatibility_mode()` |
#
# `ls.load_model(name)` chooses between the two for you.


# %%
def load_online(name):
    """A model of the hub, unprocessed."""
    try:
        from transformer_lens import HookedTransformer
    except ImportError:  # TransformerLens 4 has TransformerBridge only
        return TransformerBridge.boot_transformers(name, device=DEVICE)
    return HookedTransformer.from_pretrained_no_processing(name, device=DEVICE)


if ONLINE:
    gpt2 = load_online("gpt2")
    attention_only = ls.load_model("attn-only-2l", device=DEVICE)
    pythia = TransformerBridge.boot_transformers("EleutherAI/pythia-70m", device=DEVICE)

# %% [markdown]
# Offline, random models of the same architectures stand in: a two-layer GPT-2 and a two-layer
# Pythia, saved as Hugging Face models and loaded the way any local checkpoint is.


# %%
def stand_in(kind, **sizes):
    """A small random Hugging Face model with the shipped tokenizer, wrapped by the bridge."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=512, bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes
    )
    model_class = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = model_class(config).eval()
    network.save_pretrained(folder / kind)
    ls.load_model("attn-1l").tokenizer.save_pretrained(folder / kind)
    return TransformerBridge.boot_transformers(str(folder / kind), device=DEVICE)


if not ONLINE:
    gpt2 = stand_in("GPT2", n_embd=64, n_layer=2, n_head=4, n_positions=128)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
    pythia = stand_in("GPTNeoX", max_position_embeddings=128, **sizes)
    attention_only = ls.load_model("attn-2l", device=DEVICE)

models = {"gpt2": gpt2, "attention-only": attention_only, "pythia": pythia}
for name, model in models.items():
    cfg = model.cfg
    print(f"{name:15} {type(model).__name__:18} {cfg.n_layers} layers × {cfg.n_heads} heads")

# %% [markdown]
# ## Tokens from your own text
#
# Tokens are integers `[sequence, position]`. `ls.load_tokens` makes them from a text file with your
# tokenizer (a BOS token and `length - 1` tokens a sequence), from a Hugging Face data set
# (`"hf:NAME:SPLIT:COLUMN"`), or takes an array that you made.

# %%
story = "The quick brown fox jumps over the lazy dog, and the lazy dog does not mind at all.\n"
(folder / "mine.txt").write_text(story * 200, encoding="utf-8")
mine = ls.load_tokens(folder / "mine.txt", pythia.tokenizer, n_sequences=16, length=32)
print(tuple(mine.shape), repr(pythia.tokenizer.decode(mine[0, 1:12])))

# %% [markdown]
# Texts of unequal length need **padding, on the right**, and it must be announced. Else the model
# would be asked to predict padding, and lens_slt refuses:

# %%
lines = ["a short line", "a line that is a good deal longer than the first", "one more"]
rows = [pythia.tokenizer(line)["input_ids"] for line in lines]
PAD = pythia.tokenizer.eos_token_id
padded = torch.full((len(rows), max(map(len, rows))), PAD)
for place, row in enumerate(rows):
    padded[place, : len(row)] = torch.tensor(row)

refused = False
try:
    ls.sample(pythia, padded, "L0H0", settings=ls.Settings(draws=2, batch_size=2), progress=False)
except ValueError as error:
    refused = True
    print(error)
assert refused

# %%
quick = ls.Settings(draws=4, chains=2, batch_size=2)
draws = ls.sample(pythia, padded, "L0H0", settings=quick, pad_id=PAD, progress=False)
print("with pad_id:", draws["health"]["summary"].to_pandas().to_dict())

# %% [markdown]
# (Four draws say nothing about λ̂; what counts here is that they run.)
#
# ## Which components
#
# | name | what is sampled |
# |---|---|
# | `heads`, `L1H*`, `L1H3` | all heads, those of layer 1, one head |
# | `mlps`, `L0MLP` | MLPs |
# | `layers`, `L1` | a whole layer, with norms and biases |
# | `embed`, `unembed`, `full` | embeddings; all weights: the plain LLC |
# | `L0H1+L1H3` | two heads together, as one component |
#
# Selections can be mixed, and a wrong name is answered with the nearest right one.

# %%
corpus = ls.load_tokens("mix", pythia.tokenizer, n_sequences=64, length=48)
chosen = ["L0H1", "L1H*", "mlps"]
settings = ls.Settings(draws=30, batch_size=8)
draws = ls.sample(pythia, corpus, chosen, settings=settings, progress=False)
print(draws["health"]["summary"].to_pandas().to_string())
try:
    ls.sample(pythia, corpus, "L1H99")
except ValueError as error:
    print("\n", error)

# %% [markdown]
# On the random stand-ins verdicts such as `signal below noise` or `below start` are right: nothing
# was learned, so there is nothing to measure. With `ONLINE = True` expect healthy chains.
#
# ## Weight processing changes rLLCs
#
# Folding a norm into the weights that follow multiplies these by the norm's weight, and something
# else is divided by it: the model predicts the same. But λ̂ measures how much the loss rises when
# weights move by *as much as γ allows*, and a matrix that was made three times larger moves three
# times less in proportion. Do it to one head: W_V times 3, W_O divided by 3.

# %%
rescaled = ls.load_model("attn-2l", backend="bridge", device=DEVICE)
head, d_head = 2, rescaled.cfg.d_head
rows = slice(head * d_head, (head + 1) * d_head)
attention = rescaled.blocks[1].attn
with torch.no_grad():
    attention.v.weight[rows] *= 3  # a bridge keeps [heads × d_head, d_model] here
    attention.o.weight[:, rows] /= 3  # and [d_model, heads × d_head] here

trained = ls.load_model("attn-2l", backend="bridge", device=DEVICE)
text = ls.load_tokens("mix", n_sequences=64, length=64)
logits = [m(text[:4].to(DEVICE), return_type="logits") for m in (trained, rescaled)]
print("same predictions:", torch.allclose(*logits, atol=1e-3))
assert torch.allclose(*logits, atol=1e-3)

# %%
settings = ls.Settings(draws=100, batch_size=8)
found = {}
for name, model in {"as trained": trained, "rescaled": rescaled}.items():
    draws = ls.sample(model, text, "L1H2", settings=settings, progress=False)
    found[name] = ls.refined_llc(draws).isel(component=0)
    print(f"{name:12} λ̂ of L1H2 = {float(found[name]['llc']):.2f} ± {float(found[name]['se']):.2f}")
difference = abs(float(found["as trained"]["llc"] - found["rescaled"]["llc"]))
error = sum(float(one["se"]) ** 2 for one in found.values()) ** 0.5
print(f"difference: {difference / error:.0f} standard errors")
assert difference > 4 * error

# %% [markdown]
# The same function, another λ̂. Neither is wrong: λ̂ at finite nβ and γ belongs to a
# parametrisation. The one that was trained is the one that published numbers refer to, and the only
# one that can be compared over checkpoints. TransformerLens's own processing is recognised,
# recorded in the draws, and warned about:

# %%
processed = stand_in("GPT2", n_embd=64, n_layer=2, n_head=4, n_positions=128)
processed.enable_compatibility_mode()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    try:
        ls.sample(processed, corpus, "L0H0", settings=quick, progress=False)
    except ValueError as error:  # some versions keep processed weights where nothing can vary them
        print(error)
print(*{str(one.message) for one in seen if "process" in str(one.message)}, sep="\n")

# %% [markdown]
# ## What will it cost?
#
# Before a long run, ask. `ls.estimate` takes the arguments of `ls.sample`, times a few real steps
# on *this* machine, and does the arithmetic for the rest.

# %%
plan = ls.Settings(draws=200, batch_size=8)
cost = ls.estimate(pythia, corpus, "heads", settings=plan)
print(cost)
assert cost.seconds > 0 and cost.steps >= plan.draws

# %% [markdown]
# Time goes with components × chains × steps × batch size × sequence length, and with the depth of
# the model *after* the component: heads of the last layer are cheap. Memory on a GPU goes with
# components × chains × batch size; if it does not fit, sample fewer components at a time or lower
# `batch_size`.
#
# **On a GPU** everything runs on the model's device (`device=` of `ls.sample` moves the job alone).
# Batch sizes of 32 and more fill it. `drift_dtype="bfloat16"` computes gradients in half precision:
# faster on a GPU that has it, many times slower on a CPU (hence few draws here). Recorded losses
# stay in float32, so what changes is the noise of the drift, not the numbers you read:

# %%
few = settings.but(draws=20, drift_dtype="bfloat16")
half = ls.sample(trained, text, "L1H2", settings=few, progress=False)
half = ls.refined_llc(half).isel(component=0)
full = found["as trained"]
z = float((half["llc"] - full["llc"]) / (half["se"] ** 2 + full["se"] ** 2) ** 0.5)
print(
    f"float32 {float(full['llc']):.2f}, bfloat16 {float(half['llc']):.2f}: {z:+.1f} standard errors"
)
assert abs(z) < 4

# %% [markdown]
# ## Which nβ and γ?
#
# The defaults (nβ 30, γ 200) suit small models. `ls.calibrate` sweeps both, keeps settings at which
# every chain is healthy and stands clear of the prior, searches on where there is none, and returns
# one setting for all components, or the reason why there is none. A narrow sweep of two heads here;
# leave out `settings`, `n_betas` and `gammas` for the real one.

# %%
short = ls.Settings(draws=60, batch_size=16)
grid = dict(n_betas=(20.0, 40.0), gammas=(100.0, 300.0))
calibration = ls.calibrate(trained, text, "L0H1, L1H2", settings=short, **grid, progress=False)
print(calibration.reason)
chosen = calibration.settings or settings
print(f"to use: nβ = {chosen.n_beta:g}, γ = {chosen.gamma:g}")
ls.plot(calibration)

# %% [markdown]
# **Look at** how λ̂ changes along the grid: the slower, the less a comparison of components hangs
# on the choice. [Tutorial
# 2](2_choosing_settings.ipynb) has more.
#
# ## A run that survives
#
# With `path=`, draws go to disk. After a crash, the same call continues, and the result is that of
# a run without interruption. `ls.estimate` with the same path says what is left.

# %%
arguments = dict(components="L1H2", settings=settings.but(draws=40), path=folder / "run")

first = ls.sample(trained, text, **arguments, progress=False)
again = ls.sample(trained, text, **arguments, progress=False)  # nothing is left to do
assert bool((ls.refined_llc(first)["llc"] == ls.refined_llc(again)["llc"]).all())
print(ls.estimate(trained, text, **arguments))

# %% [markdown]
# ## A real model, on two CPU cores
#
# `python -m benchmarks.real_llm` does this with SmolLM2-135M: 30 layers of nine heads, grouped
# queries, RMSNorm, rotary positions. Measured there, in 34 minutes altogether:
#
# - `ls.behaviour_scores`: L16H0 attends to the previous token (0.88), L18H6 to what followed when
#   the token stood there before (0.91).
# - `ls.cross_check`, 11 CPU minutes a hypothesis: the path L16H0 → L17H3.K carries 2.7 nats per
#   token of random tokens said twice, and by itself recovers 3 % of what the model gains there; two
#   false paths carry −0.01 and −0.03 nats, and fail.
# - `ls.sample` of six heads, 40 draws, 32 × 32 tokens of prose: λ̂ from 0.10 ± 0.02 (L28H1) to
#   0.50 ± 0.10 (L16H0). Two are certified; of four the certificate says that there are too few
#   draws to tell. It took 9 minutes where `ls.estimate` had said 6: a step had to get smaller.
#
# ## What to take away
#
# - Load unprocessed weights: `from_pretrained_no_processing`, or a bridge as it boots.
# - Tokens are `[sequence, position]`; announce padding with `pad_id=` or `mask=`.
# - `ls.estimate` before a run, `ls.calibrate` for nβ and γ, `path=` for anything long.
#
# ## Limits
#
# - Mixture-of-experts, state-space, encoder and quantised models are refused, with the reason.
# - Models that lens_slt's own forward pass does not express (soft caps, ALiBi, local attention, …)
#   run through their own blocks: same numbers, slower.
# - λ̂ of models of different width, or with other tokens, are not comparable.
#
# ## Exercises
#
# 1. Set `ONLINE = True` and sample `"L5H*"` of GPT-2 small, where some of its induction heads are,
#    on 64 sequences of your text. Ask for the cost first.
# 2. Load GPT-2 with processing and compare λ̂ of `L5H1` in both. Which way does it go?
# 3. Rescale W_Q by 3 and W_K by 1/3 instead. Is the effect on λ̂ as large?
