"""Model files and documents that anybody may have written: one clear refusal, or a finding, and never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linted_folders import edit, good, model_path
from onnx import helper

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.inspection import inspect
from onnx_gpt.linting.linter import lint
from onnx_gpt.linting.repairing import repair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good(tmp_path_factory.mktemp("hostile") / "web", "web")


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Add", ["b", "logits"], ["a"], name="first"))
    model.graph.node.append(helper.make_node("Add", ["a", "logits"], ["b"], name="second"))


def huge(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="huge", data_type=1, dims=[2**60, 2**60])
    tensor.raw_data = b"\0" * 4


def endless(model: onnx.ModelProto) -> None:
    """A tensor that says it is 2^60 bytes of a file that has none."""
    tensor = model.graph.initializer.add(name="endless", data_type=1, dims=[2**58])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "model.onnx_data"), ("offset", "0"), ("length", str(2**60))):
        tensor.external_data.add(key=key, value=value)


def layers(model: onnx.ModelProto) -> None:
    """A cache of a layer with a number that nobody can count to."""
    name = f"past_key_values.{10**30}.key"
    model.graph.input.append(helper.make_tensor_value_info(name, 1, ["batch_size", 1, "past", 16]))


def dims(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = 2**60


REFUSED: dict[str, Callable[[onnx.ModelProto], None]] = {
    "cyclic": cyclic,
    "huge": huge,
    "endless": endless,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_cannot_be_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    edit(REFUSED[name])(bad)
    for call in (
        lambda: lint(bad, "web"),
        lambda: repair(bad, "web", tmp_path / "out"),
        lambda: inspect(str(bad)),
    ):
        with pytest.raises(OnnxGptError) as caught:
            call()
        assert caught.value.exit == Exit.REJECTED
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("change", [layers, dims])
def test_numbers_that_make_no_sense_are_findings(
    folder: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    edit(change)(bad)
    start = time.monotonic()
    for target in ("web", "genai", "ort", "openvino", "optimum", "mobile"):
        assert lint(bad, target).findings
    assert time.monotonic() - start < 20


def test_bodies_within_bodies_are_refused(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    path = model_path(bad)
    nested = b""
    for _ in range(400):  # attribute 5 of node 1 of a graph: message in message
        nested = _field(1, _field(5, _field(6, nested)))
    path.write_bytes(_field(7, nested + _field(1, b"")))
    with pytest.raises(OnnxGptError) as caught:
        lint(bad, "web")
    assert caught.value.exit == Exit.REJECTED


def _field(number: int, body: bytes) -> bytes:
    out, length = bytearray([number << 3 | 2]), len(body)
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes(out) + bytes([length]) + body


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_or_scribbled_model_is_judged_or_refused(
    folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever becomes of its bytes: findings, or an error that names a code."""
    bad = tmp_path / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(folder, bad)
    path = model_path(bad)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    path.write_bytes(content)
    try:
        lint(bad, "web")
    except OnnxGptError as error:
        assert error.code and error.remedy


REQUIRED = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")
DOCUMENTS: dict[str, bytes] = {
    "no JSON": b"{",
    "not UTF-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "deep": b'{"a":' + b"[" * 100_000,
    "twice": b'{"a": 1, "a": 2}',
}


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("what", DOCUMENTS)
def test_a_document_that_is_none_is_refused(folder: Path, tmp_path: Path, name: str, what: str) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / name).write_bytes(DOCUMENTS[what])
    with pytest.raises(OnnxGptError) as caught:
        lint(bad, "web")
    assert (caught.value.code, caught.value.exit) == ("bundle-invalid", Exit.REJECTED)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = (
    *("model_type", "num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size", "eos_token_id"),
    *(
        "transformers.js_config",
        "model",
        "search",
        "chat_template",
        "eos_token",
        "added_tokens",
        "hidden_size",
    ),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*REQUIRED, "genai_config.json"]),
    document=st.dictionaries(st.sampled_from(KEYS), ODD),
    target=st.sampled_from(["web", "genai", "optimum"]),
)
def test_values_of_any_type_are_judged_and_repaired(
    folder: Path, tmp_path: Path, name: str, document: dict[str, object], target: str
) -> None:
    """A key with a value that nobody expects is no reason for a traceback."""
    bad, out = tmp_path / "bad", tmp_path / "out"
    for old in (bad, out):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(folder, bad)
    (bad / name).write_text(json.dumps(document))
    try:
        lint(bad, target)
        repair(bad, target, out)
    except OnnxGptError as error:
        assert error.code and error.remedy


def test_links_that_lead_out_are_not_followed(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"eos_token_id": 1}')
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "generation_config.json").unlink()
    (bad / "generation_config.json").symlink_to(secret)
    with pytest.raises(OnnxGptError) as caught:
        lint(bad, "web")
    assert caught.value.code == "path-escapes"


def test_a_pipe_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "config.json").unlink()
    os.mkfifo(bad / "config.json")
    with pytest.raises(OnnxGptError) as caught:
        lint(bad, "web")
    assert caught.value.code == "file-irregular"
    shutil.rmtree(bad)
    shutil.copytree(folder, bad)
    os.mkfifo(bad / "onnx" / "model_q4.onnx")
    with pytest.raises(OnnxGptError) as caught:
        lint(bad, "web")
    assert caught.value.code == "file-irregular"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        lint(tmp_path / "nowhere", "web")
    assert caught.value.code == "bundle-missing"
    (tmp_path / "empty").mkdir()
    assert "model-absent" in {finding.code for finding in lint(tmp_path / "empty", "web").errors}
    with pytest.raises(OnnxGptError) as caught:
        repair(tmp_path / "empty", "web", tmp_path / "out")
    assert caught.value.code == "model-absent"


@pytest.mark.parametrize("key", [b"location", b"model.onnx_data"])
def test_places_that_are_no_text_are_refused(folder: Path, tmp_path: Path, key: bytes) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    path = model_path(bad)
    path.write_bytes(path.read_bytes().replace(key, b"\xff" + key[1:], 1))
    for call in (lambda: lint(bad, "web"), lambda: inspect(str(bad))):
        with pytest.raises(OnnxGptError) as caught:
            call()
        assert caught.value.code == "onnx-data-invalid"
