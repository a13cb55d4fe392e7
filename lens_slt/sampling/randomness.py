"""Every random number of a run as a function of (seed, component, step).

Nothing has to be stored to resume, results do not depend on which other components are sampled
along, and the caller's random state is never touched.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derived_generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator seeded from a hash of ``parts``."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def chain_noise(
    like: Tensor, names: list[str], seed: int, step: int | str, antithetic: bool
) -> Tensor:
    """Standard normals shaped like ``like [component, chain, parameter]``.

    With ``antithetic`` chain 2i+1 gets minus the noise of chain 2i.
    """
    _, chains, n_parameters = like.shape
    independent = chains // 2 if antithetic else chains
    noise = torch.stack(
        [
            torch.randn(
                independent, n_parameters, device=like.device, dtype=like.dtype,
                generator=derived_generator(like.device, seed, name, step),
            )
            for name in names
        ]
    )  # fmt: skip
    if antithetic:
        noise = torch.stack([noise, -noise], dim=2).flatten(1, 2)
    return noise


def chain_uniform(names: list[str], chains: int, seed: int, step: int) -> Tensor:
    """Uniform numbers ``[component, chain]`` for accept/reject decisions, on the CPU."""
    return torch.stack(
        [
            torch.rand(chains, generator=derived_generator("cpu", seed, name, step, "accept"))
            for name in names
        ]
    )


def minibatch(n_sequences: int, batch_size: int, seed: int, key: int | str) -> Tensor:
    """Sequence indices of one minibatch, all of them if they are no more than a batch.

    A batch is drawn afresh, without repeats, whatever was drawn before: a chain carries the batches
    that it has seen, and a batch that avoids them, as in reshuffled epochs, measures its loss too
    high (13.6 % on a linear regression).
    """
    if batch_size >= n_sequences:
        return torch.arange(n_sequences)
    generator = derived_generator("cpu", seed, "minibatch", key)
    return torch.randperm(n_sequences, generator=generator)[:batch_size]
