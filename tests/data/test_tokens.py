"""Loading token sequences from every kind of source."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lens_slt.data.corpora import corpus
from lens_slt.data.inputs import sequences_in
from lens_slt.data.tokenizer import BOS_ID, shipped_tokenizer
from lens_slt.data.tokens import load_tokens

PROSE = "The quick brown fox jumps over the lazy dog, and number {} does it again.\n"


def decoded(row: Tensor) -> str:
    return shipped_tokenizer().decode(row[1:].tolist())


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(PROSE.format(i) for i in range(400)))
    return path


@pytest.mark.parametrize("name", ["code", "prose", "mix"])
def test_built_in_corpora(name: str) -> None:
    tokens = load_tokens(name, n_sequences=40, length=32)
    assert tokens.shape == (40, 32)
    assert tokens.dtype == torch.int64
    assert (tokens[:, 0] == BOS_ID).all()
    assert (tokens[:, 1:] != BOS_ID).all()
    assert 0 < tokens.max() < 512
    assert len(tokens.unique(dim=0)) == 40
    assert decoded(tokens[0]) in "".join(corpus("code") + corpus("prose"))


def test_mix_is_three_quarters_code() -> None:
    code, prose = "".join(corpus("code")), "".join(corpus("prose"))
    texts = [decoded(row) for row in load_tokens("mix", n_sequences=40, length=64)]
    # Docstrings stand in the source as well, so only what prose does not hold is surely code.
    assert 26 <= sum(text in code and text not in prose for text in texts) <= 30


def test_the_seed_decides_and_no_global_generator_moves() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = load_tokens("code", n_sequences=20, length=16, seed=3)
    assert torch.equal(first, load_tokens("code", n_sequences=20, length=16, seed=3))
    assert not torch.equal(first, load_tokens("code", n_sequences=20, length=16, seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_a_small_set_comes_from_many_documents_and_a_long_one_does_not_dominate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    documents = (PROSE.format("long") * 3000, *(f"document {i} " * 400 for i in range(40)))
    monkeypatch.setattr("lens_slt.data.tokens.corpus", lambda name: documents)
    texts = [decoded(row) for row in load_tokens("code", n_sequences=32, length=32)]
    labels = ["fox" if "o" in t and "document" not in t else t[20:32] for t in texts]
    assert len(set(labels)) >= 25
    every = load_tokens("code", length=32)
    assert sum("document" not in decoded(row) for row in every) == 16


def test_only_as_many_documents_are_tokenised_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Counting:
        bos_token_id = 0

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            calls.append(text)
            return {"input_ids": [1] * 1000}

    load_tokens("code", Counting(), n_sequences=64, length=32)
    assert len(calls) == 32


def test_text_file(text_file: Path) -> None:
    tokens = load_tokens(text_file, n_sequences=20, length=48)
    assert tokens.shape == (20, 48)
    text = text_file.read_text()
    assert all(decoded(row) in text for row in tokens)
    assert len(load_tokens(str(text_file), length=48)) > 16  # one file is not held to 16


def test_without_bos_every_position_is_text(text_file: Path) -> None:
    tokens = load_tokens(text_file, n_sequences=5, length=48, bos=False)
    assert tokens.shape == (5, 48)
    assert (tokens != BOS_ID).all()


def test_too_little_text(text_file: Path) -> None:
    with pytest.raises(ValueError, match=r"no document that is long enough .* 100000 tokens"):
        load_tokens(text_file, length=100_000)
    with pytest.raises(ValueError, match=r"gives \d+ sequences of 128 tokens; n_sequences=9999"):
        load_tokens(text_file, n_sequences=9999, length=128)


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_token_array_files(tmp_path: Path, suffix: str) -> None:
    expected = torch.randint(0, 512, (6, 10), generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"tokens{suffix}"
    if suffix == ".npy":
        np.save(path, expected.numpy().astype(np.uint16))
    elif suffix == ".pt":
        torch.save(expected.int(), path)
    else:
        save_file({"tokens": expected}, path)
    assert torch.equal(load_tokens(path), expected)
    assert torch.equal(load_tokens(path, n_sequences=4, length=7), expected[:4, :7])
    with pytest.raises(ValueError, match=r"n_sequences=7 was asked for; .* shape \(6, 10\)"):
        load_tokens(path, n_sequences=7)


def test_a_safetensors_file_must_hold_one_tensor(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"must hold one tensor of tokens; it holds 2: a, b"):
        load_tokens(tmp_path / "two.safetensors")


def test_arrays_and_lists_pass_through() -> None:
    rows = [[0, 1, 2], [3, 4, 5]]
    for source in (rows, np.array(rows, dtype=np.int32), torch.tensor(rows)):
        assert load_tokens(source).tolist() == rows


@pytest.fixture
def data_set(tmp_path: Path) -> str:
    folder = tmp_path / "set"
    folder.mkdir()
    with (folder / "data.jsonl").open("w") as file:
        for i in range(30):
            file.write(json.dumps({"id": i, "title": "x", "text": PROSE.format(i) * 8}) + "\n")
    return f"hf:{folder}"


@pytest.mark.parametrize("rest", ["", ":train", ":train:text"])
def test_hugging_face_data_set(data_set: str, rest: str) -> None:
    tokens = load_tokens(data_set + rest, n_sequences=12, length=32)
    assert tokens.shape == (12, 32)
    assert all("o" in decoded(row) for row in tokens)
    assert torch.equal(tokens, load_tokens(data_set + rest, n_sequences=12, length=32))


def test_hugging_face_errors(data_set: str) -> None:
    with pytest.raises(ValueError, match=r"no text column 'body'; its text columns: title, text"):
        load_tokens(f"{data_set}:train:body", n_sequences=2)
    with pytest.raises(ValueError, match="n_sequences must be given"):
        load_tokens(data_set)
    with pytest.raises(ValueError, match=r"hf:NAME:SPLIT:COLUMN; got 'hf:'"):
        load_tokens("hf:", n_sequences=1)


def test_offline_data_set_names_the_built_in_corpora() -> None:
    with pytest.raises(
        ConnectionError, match=r"'nobody/nothing' could not be loaded .* code, prose, mix"
    ):
        load_tokens("hf:nobody/nothing", n_sequences=2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("prosa", r"'prosa' is neither a file nor a built-in corpus .* did you mean 'prose'\?"),
        ("/no/such/file.txt", r"neither a file nor a built-in corpus \(code, prose, mix\)"),
    ],
)
def test_unknown_sources(source: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        load_tokens(source)


def test_a_folder_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; pass a file, or hf:"):
        load_tokens(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_sequences": 0}, "n_sequences must be an integer of at least 1; got 0"),
        ({"length": 1}, "length must be an integer of at least 2; got 1"),
    ],
)
def test_sizes(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_tokens("code", **arguments)


def test_tokenizer_without_bos() -> None:
    tokenizer = shipped_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="no BOS token; pass bos=False"):
        load_tokens("code", tokenizer, n_sequences=1)


def test_other_text_is_other_text(text_file: Path) -> None:
    """Two seeds share sequences; what is left out is found in no set, whatever its source."""
    first = load_tokens(text_file, n_sequences=12, length=32)
    again = load_tokens(text_file, n_sequences=12, length=32, seed=1)
    assert sequences_in(first) & sequences_in(again)
    other = load_tokens(text_file, n_sequences=12, length=32, seed=1, without=first)
    rest = load_tokens(text_file, length=32, without=[first, other])
    every = load_tokens(text_file, length=32)
    parts = [*map(sequences_in, (first, other, rest))]
    assert set.union(*parts) == sequences_in(every)
    assert sum(map(len, parts)) == len(sequences_in(every))
    code = load_tokens("code", n_sequences=8, length=32, without=load_tokens("mix", length=32))
    assert not sequences_in(code) & sequences_in(load_tokens("mix", length=32))
    with pytest.raises(ValueError, match=r"gives 0 sequences of 32 tokens that are not among the"):
        load_tokens(text_file, length=32, without=every)
    with pytest.raises(ValueError, match=r"without has sequences of 32 tokens, and length is 16"):
        load_tokens(text_file, length=16, without=first)


def test_rows_are_left_out_of_arrays(tmp_path: Path) -> None:
    rows = torch.arange(12).reshape(4, 3)
    torch.save(rows, tmp_path / "rows.pt")
    for source in (rows, rows.numpy(), rows.tolist(), tmp_path / "rows.pt"):
        assert torch.equal(load_tokens(source, n_sequences=2, without=rows[1:2]), rows[[0, 2]])
        with pytest.raises(ValueError, match=r"shape \(4, 3\), of which 1 are in without"):
            load_tokens(source, n_sequences=4, without=[rows[1:2]])
