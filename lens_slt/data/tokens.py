"""Token sequences from built-in corpora, text files, token arrays and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lens_slt.arguments import did_you_mean, integer, location, typed
from lens_slt.data.corpora import CORPORA, SOURCES, corpus
from lens_slt.data.datasets import dataset_columns, dataset_documents, holds_ids
from lens_slt.data.inputs import others, read_inputs, sequences_in, texts_in, token_array
from lens_slt.data.tokenizer import shipped_tokenizer

ARRAY_FILES = (".npy", ".pt", ".safetensors")
DEFAULT_LENGTH = 128
_CODE_SHARE = 0.75  # of "mix"
_MOST_PER_DOCUMENT = 16
_FEWEST_DOCUMENTS = 32  # that a set is drawn from, where there are so many
_BLOCK = 2**16  # characters of a text file that count as one document


@typed
def load_tokens(
    source: Any,
    tokenizer: Any = None,
    *,
    n_sequences: int | None = None,
    length: int | None = None,
    seed: int = 0,
    bos: bool = True,
    without: Tensor | Sequence[Tensor] = (),
) -> Tensor:
    """Token sequences ``[sequence, position]``, int64 on the CPU.

    ``source``:
      - ``"code"``, ``"prose"`` or ``"mix"`` (three quarters code): the built-in corpora;
      - the path of a text file;
      - the path of a token array: .npy, .pt, or .safetensors with one tensor;
      - ``"hf:NAME"``, ``"hf:NAME:SPLIT"`` or ``"hf:NAME:SPLIT:COLUMN"``: a Hugging Face data set,
        whose column holds texts or token ids;
      - a tensor, array or list of integers; a ``BatchEncoding`` or a Hugging Face ``Dataset`` with
        ``input_ids``, or that column of one; rows of one length after the cut, without padding;
      - a list or a column of texts, each a document.

    Text becomes a BOS token and ``length - 1`` tokens a sequence (128 in all by default), cut from
    documents in an order that ``seed`` decides; at most 16 come from one document. The tokenizer
    is the shipped models' unless another one is given. ``n_sequences=None`` takes all there are.
    Of token arrays the first ``n_sequences`` rows and ``length`` columns are taken as they are.

    Two seeds may take the same sequence of a text. What should be *other* text, such as that of a
    circuit's trial, is loaded ``without=[tokens, probe]``: sequences that are among these are left
    out, whichever source they came from; all have one ``length``.

    Raises ValueError where there is too little text, FileNotFoundError for a path that is none,
    ConnectionError for a data set that cannot be reached.

    Example:
        >>> import lens_slt as ls
        >>> ls.load_tokens("code", n_sequences=4, length=16).shape
        torch.Size([4, 16])
        >>> tokens = ls.load_tokens([[1, 2, 3], [4, 5, 6]])
        >>> tokens
        tensor([[1, 2, 3],
                [4, 5, 6]])
        >>> ls.load_tokens([[7, 8, 9], [4, 5, 6]], without=tokens)
        tensor([[7, 8, 9]])
    """
    if n_sequences is not None:
        integer("n_sequences", n_sequences, at_least=1)
    if length is not None:
        integer("length", length, at_least=2)
    integer("seed", seed, at_least=0)
    if not isinstance(source, str | Path):
        texts = texts_in(source)
        if texts is None:
            return _without_padding(source, n_sequences, length, without)
        cut = _Cutter(tokenizer, length or DEFAULT_LENGTH, bos, seed, without)
        return cut(tuple(texts), n_sequences, "source")
    name = str(source)
    if name not in SOURCES and not name.startswith("hf:"):
        path = _existing_file(name)
        if path.suffix in ARRAY_FILES:
            rows = _cut(_read_array(path), length, name)
            return rows[_first(rows, n_sequences, without, name)]
    cut = _Cutter(tokenizer, length or DEFAULT_LENGTH, bos, seed, without)
    if name == "mix":
        return _mix(cut, n_sequences)
    if name in CORPORA:
        return cut(corpus(name), n_sequences, f"the corpus {name!r}")
    if name.startswith("hf:"):
        if n_sequences is None:
            raise ValueError(f"n_sequences must be given for a Hugging Face data set ({name!r})")
        if holds_ids(name):
            found = dataset_columns(name, n_sequences, seed=seed, length=length, without=without)
            return _without_padding(found, None, length)
        return cut.stream(dataset_documents(name, seed), n_sequences, f"the data set {name!r}")
    blocks = _blocks(path.read_text(encoding="utf-8", errors="replace"))
    return cut(blocks, n_sequences, f"the file {name!r}", most=None)


class _Cutter:
    """Cuts documents into sequences; all its random choices come from one private generator."""

    def __init__(
        self, tokenizer: Any, length: int, bos: bool, seed: int, without: Any = ()
    ) -> None:
        if tokenizer is None:
            tokenizer = shipped_tokenizer()
        if not callable(tokenizer) or not hasattr(tokenizer, "bos_token_id"):
            raise TypeError(
                "tokenizer must be one of Hugging Face's, such as model.tokenizer; "
                f"got {type(tokenizer).__name__}"
            )
        self.encode: Callable[..., Any] = tokenizer
        self.length = length
        self.known = sequences_in(without)
        for row in self.known:
            if len(row) != length:
                raise ValueError(
                    f"without has sequences of {len(row)} tokens, and length is {length}: "
                    "sequences are told apart where they have one length"
                )
        self.generator = torch.Generator().manual_seed(seed)
        self.start: list[int] = []
        if bos:
            if tokenizer.bos_token_id is None:
                raise ValueError("this tokenizer has no BOS token; pass bos=False")
            self.start = [tokenizer.bos_token_id]

    def __call__(
        self,
        documents: tuple[str, ...],
        n_sequences: int | None,
        what: str,
        most: int | None = _MOST_PER_DOCUMENT,
    ) -> Tensor:
        order = torch.randperm(len(documents), generator=self.generator).tolist()
        return self.stream((documents[i] for i in order), n_sequences, what, most)

    def stream(
        self,
        documents: Iterable[str],
        n_sequences: int | None,
        what: str,
        most: int | None = _MOST_PER_DOCUMENT,
    ) -> Tensor:
        """Sequences from documents in the order they come; stops as soon as it has enough.

        A small set takes few sequences from each document, so that it is drawn from many; the
        rest of the documents is used only when they run out.
        """
        share = most
        if n_sequences is not None:
            share = max(1, n_sequences // _FEWEST_DOCUMENTS)
            share = share if most is None else min(share, most)
        taken: list[list[int]] = []
        spare: list[list[int]] = []
        for document in documents:
            pieces = self._pieces(document)[:most]
            taken += pieces[:share]
            spare += pieces[len(pieces) if share is None else share :]
            if n_sequences is not None and len(taken) >= n_sequences:
                break
        rows = (taken + spare)[:n_sequences]
        beside = f" that are not among the {len(self.known)} in without" if self.known else ""
        if not rows and not beside:
            raise ValueError(
                f"{what} has no document that is long enough for one sequence of {self.length} "
                "tokens; pass a smaller length"
            )
        if not rows or (n_sequences is not None and len(rows) < n_sequences):
            wanted = 1 if n_sequences is None else n_sequences
            raise ValueError(
                f"{what} gives {len(rows)} sequences of {self.length} tokens{beside}; "
                f"n_sequences={wanted} were asked for"
            )
        return self.shuffled(torch.tensor(rows))

    def shuffled(self, rows: Tensor) -> Tensor:
        """The same rows in another order."""
        return rows[torch.randperm(len(rows), generator=self.generator)]

    def _pieces(self, document: str) -> list[list[int]]:
        ids = self.encode(document, add_special_tokens=False, verbose=False)["input_ids"]
        body = self.length - len(self.start)
        n_pieces = len(ids) // body
        order = torch.randperm(n_pieces, generator=self.generator).tolist()
        pieces = [self.start + ids[i * body : (i + 1) * body] for i in order]
        return [piece for piece in pieces if tuple(piece) not in self.known]


def _mix(cut: _Cutter, n_sequences: int | None) -> Tensor:
    if n_sequences is None:
        code = cut(corpus("code"), None, "the corpus 'code'")
        prose = cut(corpus("prose"), None, "the corpus 'prose'")
        n_sequences = int(min(len(code) / _CODE_SHARE, len(prose) / (1 - _CODE_SHARE)))
        n_code = round(_CODE_SHARE * n_sequences)
        rows = [code[:n_code], prose[: n_sequences - n_code]]
    else:
        n_code = round(_CODE_SHARE * n_sequences)
        counts = {"code": n_code, "prose": n_sequences - n_code}
        rows = [cut(corpus(k), n, f"the corpus {k!r}") for k, n in counts.items() if n]
    return cut.shuffled(torch.cat(rows))


def _blocks(text: str) -> tuple[str, ...]:
    """A text in blocks of whole lines."""
    blocks: list[str] = []
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= _BLOCK:
            blocks.append("".join(lines))
            lines, size = [], 0
    return (*blocks, "".join(lines)) if lines else tuple(blocks)


def _existing_file(name: str) -> Path:
    path = location("source", name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(
            f"source {name!r} is a folder; pass a file, or hf:{name} for a folder of data files"
        )
    hint = did_you_mean(name, SOURCES)
    raise FileNotFoundError(
        f"source {name!r} is neither a file nor a built-in corpus ({', '.join(SOURCES)}). "
        f"A Hugging Face data set is written hf:NAME{hint}"
    )


def _read_array(path: Path) -> Tensor:
    return token_array(read_file(path, "tokens"), str(path))


def read_file(path: Path, what: str) -> Any:
    """The one array in a .npy, .pt or .safetensors file; ValueError for what is none of them."""
    name = str(path)
    try:
        if path.suffix == ".npy":
            found = {name: np.load(path, allow_pickle=False)}
        elif path.suffix == ".pt":
            found = {name: torch.load(path, map_location="cpu", weights_only=True)}
        else:
            found = load_file(path)
    except (EOFError, RuntimeError, SafetensorError, UnpicklingError, ValueError) as error:
        why = str(error).strip().split("\n")[0] or "it ends too early"
        raise ValueError(f"source {name!r} is no {path.suffix} file of {what}: {why}") from error
    if len(found) != 1:
        raise ValueError(
            f"{name} must hold one tensor of {what}; it holds {len(found)}: "
            f"{', '.join(sorted(found)) or 'none'}"
        )
    return next(iter(found.values()))


def _without_padding(
    source: Any, n_sequences: int | None, length: int | None, without: Any = ()
) -> Tensor:
    """Rows of ids that have the whole length asked for."""
    ids, real = read_inputs(source, "source")
    taken = _first(_cut(ids, length, "source"), n_sequences, without, "source")
    found = ids[taken, :length]
    if real is not None and not bool(real[taken, :length].all()):
        n_padded = int((~real[taken, :length]).any(1).sum())
        raise ValueError(
            f"source has {n_padded} rows that are padded, or shorter than {found.shape[1]} tokens, "
            "and token sequences come without a mask: pass it as it is where tokens are asked for "
            "(ls.sample(model, data, …) leaves padding out), or a smaller length"
        )
    return found


def _cut(tokens: Tensor, length: int | None, name: str) -> Tensor:
    if length is not None and length > tokens.shape[1]:
        raise ValueError(f"length={length} was asked for; {name} has shape {tuple(tokens.shape)}")
    return tokens[:, :length]


def _first(rows: Tensor, n_sequences: int | None, without: Any, name: str) -> list[int]:
    """Places of so many of the rows that are not among other sequences."""
    places = others(rows, without)
    if not places or (n_sequences or 0) > len(places):
        known = len(rows) - len(places)
        left = f", of which {known} are in without" if known else ""
        raise ValueError(
            f"n_sequences={n_sequences} was asked for; {name} has shape {tuple(rows.shape)}{left}"
        )
    return places[:n_sequences]
