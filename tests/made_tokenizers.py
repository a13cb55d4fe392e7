"""A tokenizer made by hand, and random tokens."""

import numpy as np


class Pieces:
    """A tokenizer whose vocabulary is the given strings after a BOS, id 0."""

    bos_token_id = 0

    def __init__(self, *pieces: str) -> None:
        self.texts = ["<bos>", *dict.fromkeys(pieces)]

    def __len__(self) -> int:
        return len(self.texts)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[i] for i in ids)

    def ids(self, *pieces: str) -> list[list[int]]:
        return [[self.texts.index(piece) for piece in pieces]]


def random_rows(d_vocab: int, n_sequences: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, d_vocab, (n_sequences, length))
