"""The shipped models' tokenizer: byte-level BPE of 512 entries with a BOS token."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lens_slt.data.corpora import CORPORA, corpus

BOS = "<|bos|>"
BOS_ID = 0
VOCABULARY_SIZE = 512
TOKENIZER_FILE = "tokenizer.json"


def shipped_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of every shipped model."""
    path = files("lens_slt.models") / "shipped" / TOKENIZER_FILE
    tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
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
    train_tokenizer(Path(__file__).parent / "shipped" / TOKENIZER_FILE)
