"""The lock-step loop: all components and chains advance on the same minibatch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lens_slt.sampling import lm, pcn, rmsprop_sgld, sgld
from lens_slt.sampling.randomness import chain_noise, chain_uniform
from lens_slt.sampling.result import probe_array
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import DrawStore

SECONDS_BETWEEN_SAVES = 60.0

State = dict[str, Tensor]  # of one group of components; every tensor starts [component, chain]


@dataclass(frozen=True)
class Members:
    """Components that are evaluated together."""

    names: list[str]
    star: Tensor  # [component, parameter]


class Target(Protocol):
    """A loss that chains explore, for one or more groups of components."""

    @property
    def groups(self) -> list[Members]: ...

    def minibatch_losses(self, v: list[Tensor], step: int) -> tuple[list[Tensor], list[Tensor]]:
        """Paired losses ``[component, chain]`` and gradients on the minibatch of this step."""
        ...

    def full_losses(self, v: list[Tensor]) -> list[Tensor]:
        """Paired losses ``[component, chain]`` on the whole fixed likelihood set."""
        ...

    def probe_losses(self, v: list[Tensor]) -> dict[str, Tensor]:
        """Paired per-token losses ``[component, chain, sequence, position]`` of every probe."""
        ...


def run_chains(
    target: Target,
    settings: Settings,
    store: DrawStore,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Advance all chains to the end, recording into ``store``; resumes where the store stands.

    Draw t is the state before step t's update: its paired loss, its distance from the given weights
    and, at every ``thin``-th draw, its probe losses belong to the same weights.
    """
    done = _restore(target, settings, store)
    advance = _SAMPLERS[settings.sampler]
    noises = _NoiseTape(target, settings)
    saved = time.monotonic()
    try:
        for step in range(done[0], settings.steps):
            states = done[1]
            us = [state["u"] for state in states]
            new_states, losses, recorded = advance(target, settings, states, noises, step)
            if recorded is not None:
                us = recorded
            distance = [u.square().sum(-1) for u in us]
            probes = {}
            draw = step - settings.burn_in_steps
            if draw >= 0 and draw % settings.thin == 0:
                probes = target.probe_losses([m.star[:, None] + u for m, u in _zip(target, us)])
            store.put("paired_loss", step, torch.cat(losses))
            store.put("squared_distance", step, torch.cat(distance))
            for name, values in probes.items():
                store.put(probe_array(name), draw // settings.thin, values)
            done = (step + 1, new_states)  # one assignment: an interrupt sees both or neither
            on_step(step)
            due = time.monotonic() - saved > SECONDS_BETWEEN_SAVES
            if due or store.is_block_end(step):
                _save(target, done, store)
                saved = time.monotonic()
    finally:
        _save(target, done, store)  # what is finished is kept, also after Ctrl-C


class _NoiseTape:
    """Noise by step; remembers the last one because Leimkuhler–Matthews uses each twice."""

    def __init__(self, target: Target, settings: Settings) -> None:
        self._groups, self._settings = target.groups, settings
        self._last: dict[int, list[Tensor]] = {}

    def at(self, step: int) -> list[Tensor]:
        if step not in self._last:
            s = self._settings
            kept = {k: v for k, v in self._last.items() if k == step - 1}
            like = [m.star[:, None].expand(-1, s.chains, -1) for m in self._groups]
            kept[step] = [
                chain_noise(x, m.names, s.seed, step, s.antithetic)
                for x, m in zip(like, self._groups, strict=True)
            ]
            self._last = kept
        return self._last[step]


_Advance = Callable[
    [Target, Settings, list[State], _NoiseTape, int],
    tuple[list[State], list[Tensor], list[Tensor] | None],
]


def _langevin(
    target: Target, settings: Settings, states: list[State], noises: _NoiseTape, step: int
) -> tuple[list[State], list[Tensor], list[Tensor] | None]:
    v = [m.star[:, None] + s["u"] for m, s in zip(target.groups, states, strict=True)]
    losses, grads = target.minibatch_losses(v, step)
    noise = noises.at(step)
    after = noises.at(step + 1) if settings.sampler == "lm" else noise
    epsilon, n_beta, gamma = settings.epsilon, settings.n_beta, settings.gamma
    new: list[State] = []
    for state, g, xi, xi_next in zip(states, grads, noise, after, strict=True):
        u = state["u"]
        if settings.sampler == "lm":
            u = lm.step(u, g, xi, xi_next, step_size=epsilon, n_beta=n_beta, gamma=gamma)
            new.append({"u": u})
        elif settings.sampler == "sgld":
            new.append({"u": sgld.step(u, g, xi, step_size=epsilon, n_beta=n_beta, gamma=gamma)})
        else:
            u, square = rmsprop_sgld.step(
                u, state["square"], g, xi, step_size=epsilon, n_beta=n_beta, gamma=gamma
            )
            new.append({"u": u, "square": square})
    return new, losses, None


def _crank_nicolson(
    target: Target, settings: Settings, states: list[State], noises: _NoiseTape, step: int
) -> tuple[list[State], list[Tensor], list[Tensor] | None]:
    proposals = [
        pcn.propose(state["u"], state["scale"], noise, settings.gamma)
        for state, noise in zip(states, noises.at(step), strict=True)
    ]
    losses = target.full_losses([m.star[:, None] + u for m, u in _zip(target, proposals)])
    new: list[State] = []
    for members, state, u, loss in zip(target.groups, states, proposals, losses, strict=True):
        uniform = chain_uniform(members.names, settings.chains, settings.seed, step).to(loss)
        taken = pcn.accept(state["loss"], loss, uniform, settings.n_beta)
        scale = state["scale"]
        if step < settings.burn_in_steps:
            scale = pcn.adapt(scale, taken, step)
        new.append(
            {
                "u": torch.where(taken[..., None], u, state["u"]),
                "loss": torch.where(taken, loss, state["loss"]),
                "scale": scale,
            }
        )
    return new, [s["loss"] for s in new], [s["u"] for s in new]


def _prior_draws(
    target: Target, settings: Settings, states: list[State], noises: _NoiseTape, step: int
) -> tuple[list[State], list[Tensor], list[Tensor] | None]:
    us = [noise / settings.gamma**0.5 for noise in noises.at(step)]
    losses = target.full_losses([m.star[:, None] + u for m, u in _zip(target, us)])
    return [{"u": u} for u in us], losses, us


_SAMPLERS: dict[str, _Advance] = {
    "lm": _langevin,
    "sgld": _langevin,
    "rmsprop_sgld": _langevin,
    "pcn": _crank_nicolson,
    "importance": _prior_draws,
}


def _initial(target: Target, settings: Settings) -> list[State]:
    states: list[State] = []
    for members in target.groups:
        n, p = members.star.shape
        state = {"u": members.star.new_zeros(n, settings.chains, p)}
        if settings.sampler == "rmsprop_sgld":
            state["square"] = torch.zeros_like(state["u"])
        if settings.sampler == "pcn":
            state["loss"] = members.star.new_zeros(n, settings.chains)
            state["scale"] = members.star.new_full((n, settings.chains), pcn.FIRST_SCALE)
        states.append(state)
    return states


def _restore(target: Target, settings: Settings, store: DrawStore) -> tuple[int, list[State]]:
    states = _initial(target, settings)
    step, tensors = store.load_state()
    if not tensors:
        return 0, states
    for members, state in zip(target.groups, states, strict=True):
        for key, like in state.items():
            rows = [tensors[f"{name}|{key}"] for name in members.names]
            state[key] = torch.stack(rows).to(like)
    return step, states


def _save(target: Target, done: tuple[int, list[State]], store: DrawStore) -> None:
    step, states = done
    tensors = {
        f"{name}|{key}": values[i].cpu()
        for members, state in zip(target.groups, states, strict=True)
        for key, values in state.items()
        for i, name in enumerate(members.names)
    }
    store.save(step, tensors)


def _zip(target: Target, values: list[Tensor]) -> list[tuple[Members, Tensor]]:
    return list(zip(target.groups, values, strict=True))
