"""Checked tokens of a run in one file, for the workers that sample parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lens_slt.models.loss import ReferenceState
from lens_slt.models.observable import Observable
from lens_slt.sampling.target import TokenSet

DATA = ""  # the name of what is sampled; no probe has it
TURNED = " transposed"  # ends the name of a matrix that lies so in memory: rounding depends on it


def write_token_sets(file: Path, data: TokenSet, probes: Mapping[str, TokenSet]) -> None:
    """Tokens, their weights and references; observables are functions and go with the jobs."""
    tensors: dict[str, Tensor] = {}
    for name, one in {DATA: data, **probes}.items():
        own = {"tokens": one.tokens, "weight": one.weight, "shift": one.shift}
        for key, value in vars(one.reference).items() if one.reference else ():
            if value is not None:
                turned = value.ndim == 2 and not value.is_contiguous()
                own[key + TURNED * turned] = value.T if turned else value
        tensors |= {f"{name}|{key}": value.detach().cpu() for key, value in own.items()}
    compact = torch.contiguous_format
    copies = {key: value.clone(memory_format=compact) for key, value in tensors.items()}
    fresh = file.with_suffix(".new")
    save_file(copies, fresh)
    fresh.replace(file)


def read_token_sets(
    file: Path, device: torch.device, observables: Mapping[str, dict[str, Observable]]
) -> tuple[TokenSet, dict[str, TokenSet]]:
    """What :func:`write_token_sets` wrote, on a device; ``observables`` has all probes."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in (DATA, *observables)}
    for key, value in load_file(file).items():
        name, part = key.split("|")
        value = value if part == "shift" else value.to(device)
        found[name][part.removesuffix(TURNED)] = value.T if part.endswith(TURNED) else value
    sets = {}
    for name, parts in found.items():
        reference = None
        if "x" in parts:
            reference = ReferenceState(parts["x"], parts["w_u"], parts.get("b_u"))
        sets[name] = TokenSet(
            parts["tokens"], parts["weight"], parts["shift"], reference, observables.get(name, {})
        )
    return sets.pop(DATA), sets
