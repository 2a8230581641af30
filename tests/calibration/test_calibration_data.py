"""Calibration text: every format gives the same tokens, a seed gives the same windows, and bad data has a code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from calibration.data.documents import digests_of, documents_of, files_of
from calibration.data.windows import RUN, Encoder, Windows, pack, require_apart
from exporter.errors import OnnxGptError

VOCABULARY = {chr(97 + i): i for i in range(26)} | {" ": 26, "<s>": 27}
LETTERS = 28


def tokenizer(*, prefix: bool = False) -> bytes:
    one = Tokenizer(models.WordLevel(VOCABULARY, unk_token=" "))
    one.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if prefix:
        one.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 27)])
    return one.to_str().encode()


def text(length: int, seed: int = 0) -> str:
    return "".join(chr(97 + i) for i in np.random.default_rng(seed).integers(0, 26, length))


def windows_of(path: Path, **options: Any) -> np.ndarray:
    documents = (document for file in files_of(path) for document in documents_of(file, None))
    settings = {"count": 8, "window": 64, "seed": 0} | options
    return pack(documents, Encoder(tokenizer(), LETTERS), **settings)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def test_every_format_gives_the_same_windows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    words = text(4000)
    ids = np.array([ord(letter) - 97 for letter in words])
    (tmp_path / "a.txt").write_text(words)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": words}) + "\n\n")
    np.save(tmp_path / "a.npy", ids.reshape(40, 100))
    write_parquet(tmp_path / "a.parquet", [{"text": words, "other": 1}])
    table = pa.Table.from_pylist([{"text": words}])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for end in ("txt", "jsonl"):  # as Windows' tools write them
        (tmp_path / f"mark.{end}").write_bytes(b"\xef\xbb\xbf" + (tmp_path / f"a.{end}").read_bytes())
    names = ["a.txt", "a.jsonl", "a.npy", "a.parquet", "a.arrow", "mark.txt", "mark.jsonl"]
    found = [windows_of(tmp_path / name) for name in names]
    assert all(np.array_equal(found[0], other) for other in found)


def test_windows_are_drawn_by_the_seed_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(64 * 60))
    one, again, other = (windows_of(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len(np.unique(one, axis=0)) == 8


def test_every_window_begins_as_the_tokenizer_begins_a_text() -> None:
    found = pack([text(3000)], Encoder(tokenizer(prefix=True), LETTERS), count=8, window=64)
    assert (found[:, 0] == 27).all()
    assert (found[:, 1:] < 26).all()


def test_chats_are_read_as_the_model_writes_them(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")

    def render(given: Any) -> str:
        return " ".join(message["content"] for message in given)

    assert list(documents_of(tmp_path / "a.jsonl", render)) == ["hello there"]


def test_a_folder_is_its_files_by_name_and_facts_have_digests(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.bin").write_text("no text")
    files = files_of(tmp_path)
    assert [file.name for file in files] == ["a.txt", "b.txt"]
    first = "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
    assert digests_of(tmp_path)["a.txt"] == digests_of(files[0])["a.txt"] == first
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    digests = digests_of(tmp_path)
    assert list(digests) == ["a.txt", "b.txt", "one/a.txt", "other/a.txt"]
    assert len(set(digests.values())) == 4
    tokens = np.arange(6).reshape(2, 3)
    one, other = (Windows(t, "here", 0, {}).facts() for t in (tokens, tokens + 1))
    assert (one["windows"], one["window"]) == (2, 3)
    assert one["sha256"] != other["sha256"]


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.txt", b" \n", "calibration-empty"),
    "too short": ("a.txt", text(100).encode(), "calibration-too-short"),
    "not UTF-8": ("a.txt", b"caf\xe9" * 100, "calibration-not-utf8"),
    "not UTF-8 rows": ("a.jsonl", b'{"text": "caf\xe9"}', "calibration-not-utf8"),
    "not JSON": ("a.jsonl", b"{", "calibration-row"),
    "no text": ("a.jsonl", b'{"id": 3}', "calibration-row"),
    "half a character": ("a.jsonl", b'{"text": "\\ud800' + b"a" * 4000 + b'"}', "calibration-not-utf8"),
    "endless number": ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "calibration-row"),
    "other roles": ("a.jsonl", b'{"conversations": [{"from": "human", "value": "a"}]}', "calibration-row"),
    "no template": ("a.jsonl", b'{"messages": [{"role": "user"}]}', "chat-template-missing"),
    "no array": ("a.npy", b"no", "calibration-unreadable"),
    "no table": ("a.parquet", b"no", "calibration-unreadable"),
    "unknown": ("a.pdf", b"no", "calibration-format"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_has_a_code(tmp_path: Path, case: str) -> None:
    name, content, code = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OnnxGptError) as caught:
        windows_of(tmp_path / name)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("array", "code"),
    [(np.full(4000, LETTERS), "token-out-of-range"), (np.full(4000, -1), "token-out-of-range"),
     (np.ones(4000), "calibration-unreadable")],
)  # fmt: skip
def test_tokens_must_be_of_the_model(tmp_path: Path, array: np.ndarray, code: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(OnnxGptError) as caught:
        windows_of(tmp_path)
    assert caught.value.code == code


def test_an_archive_of_arrays_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.ones(9, np.int64))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(OnnxGptError, match="archive"):
        windows_of(tmp_path)


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    row = json.dumps({"text": text(4000)}).encode()
    (tmp_path / "a.jsonl").write_bytes(row)
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + row)
    assert np.array_equal(windows_of(tmp_path / "a.jsonl"), windows_of(tmp_path / "b.jsonl"))


def test_both_forms_of_arrow_are_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": [text(3000), text(1000, 1)]})
    for name, writer in (("a.arrow", pa.ipc.new_stream), ("b.arrow", pa.ipc.new_file)):
        with writer(str(tmp_path / name), table.schema) as sink:
            sink.write_table(table)
    assert np.array_equal(windows_of(tmp_path / "a.arrow"), windows_of(tmp_path / "b.arrow"))


def test_a_missing_path_and_a_missing_tokenizer_have_codes(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        files_of(tmp_path / "none")
    assert caught.value.code == "calibration-missing"
    with pytest.raises(OnnxGptError) as caught:
        pack(["text"], Encoder(None, LETTERS), count=1, window=8)
    assert caught.value.code == "tokenizer-missing"


def test_text_that_is_evaluated_on_is_refused() -> None:
    rng = np.random.default_rng(0)
    evaluation, apart = rng.integers(0, 1000, (2, 4, 128))
    require_apart(apart, evaluation)
    shared = apart.copy()
    shared[2, 10 : 10 + RUN] = evaluation[1, 50 : 50 + RUN]
    with pytest.raises(OnnxGptError) as caught:
        require_apart(shared, evaluation)
    assert caught.value.code == "calibration-overlap"
    shared[2, 30] += 1
    require_apart(shared, evaluation)
