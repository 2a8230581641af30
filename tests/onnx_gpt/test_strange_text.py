"""Text as it lies on disks: endless, short, hidden, padded by its tokenizer, in capitals, in parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_decoders import byte_tokenizer
from tokenizers import Tokenizer

from calibration.data import documents
from calibration.data.documents import documents_of, files_of
from calibration.data.windows import Encoder
from exporter.errors import OnnxGptError
from onnx_gpt.generation.chat import ChatTemplate
from onnx_gpt.generation.prompt import encode
from onnx_gpt.parity.text import evaluation_sample, evaluation_tokens, require_some

VOCAB = 300
SENTENCE = "the quick brown fox jumps over the lazy dog. "


def tokenizer(**changes: object) -> bytes:
    return json.dumps({**json.loads(byte_tokenizer().to_str()), **changes}).encode()


def evaluated(path: Path, tokens: int = 64, **settings: bool) -> np.ndarray:
    return evaluation_tokens(tokenizer(), VOCAB, tokens=tokens, window=33, path=path, **settings).windows


def test_no_more_of_a_text_is_read_than_is_used(tmp_path: Path) -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("this system has no endless file")
    assert evaluated(Path("/dev/zero")).shape == (2, 33)
    assert evaluation_sample(Path("/dev/zero")).startswith("\0" * 100)


def test_a_text_that_is_too_short_is_no_weaker_gate(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(SENTENCE)
    with pytest.raises(OnnxGptError, match="text-too-short"):
        evaluated(tmp_path / "short.txt")
    assert evaluated(tmp_path / "short.txt", fewer=True).shape == (1, 33)


def test_a_mark_of_the_byte_order_is_no_token(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text(SENTENCE * 9)
    (tmp_path / "marked.txt").write_text(SENTENCE * 9, "utf-8-sig")
    assert np.array_equal(evaluated(tmp_path / "plain.txt"), evaluated(tmp_path / "marked.txt"))


def test_padding_that_a_tokenizer_keeps_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SENTENCE * 9)
    padding = {
        **{"strategy": {"Fixed": 999}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 7, "pad_type_id": 0, "pad_token": "!"},
    }
    padded = evaluation_tokens(
        tokenizer(padding=padding), VOCAB, tokens=64, window=33, path=tmp_path / "a.txt"
    )
    assert np.array_equal(padded.windows, evaluated(tmp_path / "a.txt"))


def test_hidden_files_of_a_folder_are_no_text(tmp_path: Path) -> None:
    for name in ("b.txt", "A.TXT", ".ipynb_checkpoints/b.txt", "._b.txt", "c/.d/e.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SENTENCE)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert sorted(file.name for file in files_of(tmp_path)) == ["A.TXT", "b.txt"]
    assert list(documents_of(tmp_path / "A.TXT", None)) == [SENTENCE]
    hidden = tmp_path / ".ipynb_checkpoints"
    assert [file.name for file in files_of(hidden)] == ["b.txt"]  # what is named itself is meant


def test_a_pipe_is_called_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(OnnxGptError, match="not a regular file"):
        files_of(tmp_path / "p.txt")


def test_a_long_text_comes_in_pieces_and_gives_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(SENTENCE * 1000)

    def tokens() -> np.ndarray:
        encoder = Encoder(tokenizer(), VOCAB)
        read = documents_of(tmp_path / "a.txt", None)
        return np.concatenate([ids for one in read for ids in encoder.encode(one)])

    whole = tokens()
    monkeypatch.setattr(documents, "PIECE", 1 << 14)
    assert len(list(documents_of(tmp_path / "a.txt", None))) == 3
    assert np.array_equal(tokens(), whole)


def test_a_conversation_that_the_template_refuses_is_named_by_its_row(tmp_path: Path) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}")
    rows = [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = documents_of(tmp_path / "a.jsonl", template.render)
    assert next(read) == "userhi"
    with pytest.raises(OnnxGptError, match=r"row 2: .* list of parts"):
        next(read)


def test_numbers_of_a_wrong_kind_are_told_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", np.full(9, 2**63 + 5, np.uint64))
    with pytest.raises(OnnxGptError, match=f"token {2**63 + 5},"):
        list(Encoder(None, VOCAB).encode(next(documents_of(tmp_path / "big.npy", None))))
    np.save(tmp_path / "objects.npy", np.array([{}] * 9), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04\x95")
    for name in ("objects.npy", "pickle.npy"):
        with pytest.raises(OnnxGptError, match="calibration-unreadable") as caught:
            list(documents_of(tmp_path / name, None))
        assert "allow_pickle" not in str(caught.value)


def test_a_tokenizer_without_a_token_for_a_word_says_so(tmp_path: Path) -> None:
    words = {"type": "WordLevel", "vocab": {"the": 1}, "unk_token": "[UNK]"}
    knows = tokenizer(model=words, added_tokens=[], decoder=None)
    (tmp_path / "a.txt").write_text(SENTENCE * 9)
    with pytest.raises(OnnxGptError, match="tokenizer-invalid"):
        evaluation_tokens(knows, VOCAB, tokens=64, window=33, path=tmp_path / "a.txt")
    with pytest.raises(OnnxGptError, match="tokenizer-invalid"):
        list(Encoder(knows, VOCAB).encode(SENTENCE))
    with pytest.raises(OnnxGptError, match="tokenizer-invalid"):
        encode(SENTENCE, Tokenizer.from_str(knows.decode()), None)


def test_a_regular_expression_that_runs_away_ends_as_an_error(tmp_path: Path) -> None:
    """The library panics there, and a panic is no Exception."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    runs_away = tokenizer(pre_tokenizer=split)
    text = "a" * 60 + "! "
    (tmp_path / "a.txt").write_text(text * 99)
    with pytest.raises(OnnxGptError, match=r"tokenizer-invalid.*retry-limit"):
        evaluation_tokens(runs_away, VOCAB, tokens=64, window=33, path=tmp_path / "a.txt")
    with pytest.raises(OnnxGptError, match="tokenizer-invalid"):
        list(Encoder(runs_away, VOCAB).encode(text))
    with pytest.raises(OnnxGptError, match="tokenizer-invalid"):
        encode(text, Tokenizer.from_str(runs_away.decode()), None)


@pytest.mark.parametrize("tokens", [0, 10**30, 10**400])
def test_a_number_of_tokens_is_one_that_a_text_can_have(tokens: int) -> None:
    with pytest.raises(OnnxGptError, match="text-too-short"):
        require_some(tokens)
