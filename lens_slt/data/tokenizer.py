"""The shipped models' tokenizer: byte-level BPE of 512 entries with a BOS token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lens_slt.data.corpora import CORPORA, corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS = "<|bos|>"
BOS_ID = 0
VOCABULARY_SIZE = 512
TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")


def shipped_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of every shipped model."""
    from transformers import PreTrainedTokenizerFast  # takes a second to load

    tokenizer = Tokenizer.from_file(str(TOKENIZER_FILE))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS, unk_token=BOS,
        padding_side="right", clean_up_tokenization_spaces=False,
    )  # fmt: skip


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
