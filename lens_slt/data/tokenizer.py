"""The shipped models' tokenizer: byte-level BPE of 512 entries with a BOS token."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lens_slt.arrays import BoolArray
from lens_slt.data.corpora import CORPORA, corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS = "<|bos|>"
BOS_ID = 0
VOCABULARY_SIZE = 512
FIRST_MERGED = 257  # ids below are the BOS and single bytes
PASS_TOKENIZER = (
    "they are not of the shipped models' tokenizer: pass the one that made them, such as "
    "tokenizer=model.tokenizer"
)
TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")


def shipped_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of every shipped model."""
    from transformers import PreTrainedTokenizerFast  # takes a second to load

    tokenizer = Tokenizer.from_file(str(TOKENIZER_FILE))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS, unk_token=BOS,
        padding_side="right", clean_up_tokenization_spaces=False,
    )  # fmt: skip


class TokenizerWarning(UserWarning):
    """What could not be read for want of a tokenizer."""


# Text of the corpora keeps 0.998 of its tokens, 0.46 of which are merged. Permuted ids keep 0.70,
# random ids of 512 keep 0.72, of 26 keep 0.98, none of them merged.
_LEAST_KEPT, _LEAST_MERGED = 0.95, 0.1
_CUT = 2  # tokens of a word that is cut at the end of a row may change
_MOST_ROWS = 64  # that are read


def can_be_shipped(ids: NDArray[np.integer[Any]], real: BoolArray) -> bool:
    """Whether the shipped tokenizer can have made these tokens ``[sequence, position]``.

    Ids of another vocabulary read as noise, which cut again gives other tokens; those of a small
    one read as single bytes, of which no text consists. ``real`` is false at padding.
    """
    if not ((ids >= 0) & (ids < VOCABULARY_SIZE))[real].all():
        return False
    rows = np.arange(min(len(ids), _MOST_ROWS)) * len(ids) // min(len(ids), _MOST_ROWS)
    runs = [run for row in rows for run in _runs(ids[row], real[row] & (ids[row] != BOS_ID))]
    tokenizer = Tokenizer.from_file(str(TOKENIZER_FILE))
    texts = tokenizer.decode_batch(runs)
    again = [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
    kept = sum((Counter(a) & Counter(b)).total() for a, b in zip(runs, again, strict=True))
    n_tokens = sum(map(len, runs))
    n_merged = sum(token >= FIRST_MERGED for run in runs for token in run)
    enough = kept >= _LEAST_KEPT * n_tokens - _CUT and n_merged >= _LEAST_MERGED * n_tokens
    return n_tokens > 0 and enough


def _runs(row: NDArray[np.integer[Any]], is_text: BoolArray) -> list[list[int]]:
    """The tokens of a row between those that are no text."""
    ends = np.flatnonzero(np.diff(is_text, prepend=False, append=False))
    return [row[a:b].tolist() for a, b in ends.reshape(-1, 2)]


def train_tokenizer(path: Path) -> None:
    """Train the tokenizer on the built-in corpora and write it to ``path``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for name in CORPORA for text in corpus(name)), trainer)
    tokenizer.save(str(path), pretty=False)


if __name__ == "__main__":
    train_tokenizer(TOKENIZER_FILE)
