"""Models with random weights, each as lens_slt gets it and as an untouched copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.families.family import TOKENS, Family
from benchmarks.families.plain import Layer, Place, Plain, Read
from benchmarks.quiet import quiet


class NotBuilt(Exception):
    """Neither transformers nor TransformerLens makes such a model here."""


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every parameter, no two alike, norm weights around one."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.named_parameters())
    flat = 0.3 * torch.randn(sum(p.numel() for _, p in parameters), generator=generator)
    sizes = [p.numel() for _, p in parameters]
    for (name, _), part in zip(parameters, flat.split(sizes), strict=True):
        norm = "ln" in name.lower() or "norm" in name.lower()
        if norm and name.endswith(("w", "weight")):
            part += 1.0
    while len(flat.unique()) < len(flat):
        order = flat.argsort()
        again = order[1:][flat[order][1:] == flat[order][:-1]]
        flat[again] += 1e-3 * torch.randn(len(again), generator=generator)
    with torch.no_grad():
        for (_, p), part in zip(parameters, flat.split(sizes), strict=True):
            p.copy_(part.view_as(p))
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):  # Gemma 4 multiplies the stream by it
                buffer.fill_(0.8)
    return model


def wrapped(family: Family) -> tuple[nn.Module, Plain]:
    """A family's bridge, and the plain copy made before it was wrapped."""
    import transformers

    try:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        with quiet():
            config = getattr(transformers, family.config)(**{**TOKENS, **family.options})
            config._attn_implementation = "eager"
            model = getattr(transformers, family.model)(config).eval()
            randomise(model)
            own = copy.deepcopy(model)
            bridge = build_bridge_from_module(
                model, architecture=family.model, hf_config=config, model_name=family.name
            ).eval()
            bridge(torch.tensor([[2, 3]]))
    except Exception as raised:  # whatever other packages raise
        raise NotBuilt(f"{type(raised).__name__}: {raised}") from raised
    return bridge, plain_hugging_face(own, family)


def plain_hugging_face(model: nn.Module, family: Family) -> Plain:
    """The places of a Hugging Face model, as its family declares them."""
    if family.unsupported:
        blocks: list[nn.Module] = []
    else:
        blocks = list(model.get_submodule(family.blocks))  # type: ignore[arg-type]
    layers = tuple(_layer(block, family) for block in blocks)
    fused = len(family.qkv) == 1

    def features(part: str, head: int) -> Tensor:
        return _features(family, part, head) if fused else _block(head, family.d_head)

    def mlps(layer: int) -> list[nn.Parameter]:
        last = str(family.mlp)
        if "." not in last:  # two maps beside each other in the block
            return [_weight(blocks[layer].get_submodule(name)) for name in ("fc1", last)]
        parent = blocks[layer].get_submodule(last.rpartition(".")[0])
        return [p for p in parent.parameters() if p.dim() > 1]

    def matrix(layer: int, part: str, read: Read) -> Tensor:
        place = PLACES[part] if part != "O" else 0
        name = family.o if part == "O" else family.qkv[0 if fused else place]
        module = blocks[layer].get_submodule(name)
        whole = read(_weight(module))
        whole = whole if type(module).__name__ == "Conv1D" else whole.T
        if part == "O":
            return whole
        count = family.heads if part == "Q" else family.key_values
        return whole[:, torch.cat([features(part, head) for head in range(count)])]

    def norm(layer: int) -> tuple[Tensor | None, bool]:
        if not family.norm:
            return None, False
        weight = getattr(blocks[layer].get_submodule(family.norm), "weight", None)
        if weight is not None:
            weight = weight.detach() + (1.0 if family.plus_one else 0.0)
        return weight, family.centred

    return Plain(
        model, lambda tokens: model(tokens, use_cache=False).logits, tuple(blocks), layers,
        family.heads, family.key_values, family.d_head, features, mlps, matrix, norm,
    )  # fmt: skip


PLACES = {"Q": 0, "K": 1, "V": 2}


def _layer(block: nn.Module, family: Family) -> Layer:
    o = block.get_submodule(family.o)
    maps = [Place(block.get_submodule(name)) for name in family.qkv]
    q, k, v = maps if len(maps) == 3 else maps * 3
    mlp = Place(block.get_submodule(family.mlp_norm or str(family.mlp)))
    return Layer(Place(block, True), Place(block), Place(o, True), Place(o), (q, k, v), mlp)


def _block(index: int, width: int) -> Tensor:
    return torch.arange(index * width, (index + 1) * width)


def _features(family: Family, part: str, head: int) -> Tensor:
    """Where a fused map puts out a head's queries, keys or values."""
    d, heads, key_values = family.d_head, family.heads, family.key_values
    if family.fused == "concat":
        start = {"Q": 0, "K": heads, "V": heads + key_values}[part]
        return _block(start + head, d)
    if family.fused in ("heads", "groups"):
        group = heads // key_values
        own, place = (head // group, head % group) if part == "Q" else (head, group)
        return _block(own * (group + 2) + place + (part == "V"), d)
    each = heads * d // 4  # CodeGen: four parts, in each queries, values, keys of some heads
    start = head * d // each * 3 * each + {"Q": 0, "V": 1, "K": 2}[part] * each
    return start + torch.arange(d) + head * d % each


def _weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")


def plain_hooked(model: Any) -> Plain:
    """The places of a HookedTransformer: its hook points are modules like any other."""
    cfg = model.cfg
    key_values = cfg.n_key_value_heads or cfg.n_heads

    def layer(block: Any) -> Layer:
        q, k, v = (Place(getattr(block.attn, f"hook_{part}")) for part in "qkv")
        mlp = None if cfg.attn_only else Place(block.hook_mlp_out)
        return Layer(
            Place(block.hook_resid_pre), Place(block.hook_resid_post), Place(block.attn.hook_z),
            Place(block.hook_attn_out), (q, k, v), mlp,
        )  # fmt: skip

    def mlps(index: int) -> list[nn.Parameter]:
        return [p for name, p in model.blocks[index].mlp.named_parameters() if "W_" in name]

    def matrix(index: int, part: str, read: Read) -> Tensor:
        attn = model.blocks[index].attn
        if part == "O":
            return read(attn.W_O).flatten(0, 1)
        own = f"_W_{part}" if part != "Q" and key_values < cfg.n_heads else f"W_{part}"
        return read(getattr(attn, own)).permute(1, 0, 2).flatten(1)

    def norm(index: int) -> tuple[Tensor | None, bool]:
        kind = cfg.normalization_type
        if kind is None:
            return None, False
        weight = getattr(model.blocks[index].ln1, "w", None)
        return None if weight is None else weight.detach(), kind.startswith("LN")

    return Plain(
        model, lambda tokens: model(tokens, return_type="logits"),
        tuple(model.blocks), tuple(layer(block) for block in model.blocks),
        cfg.n_heads, key_values, cfg.d_head, lambda part, head: _block(head, cfg.d_head), mlps,
        matrix, norm,
    )  # fmt: skip
