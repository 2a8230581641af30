"""Modules whose fault shows only at another length, or on the wrong stream."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_decoders import save_bundle

from exporter.errors import OnnxGptError
from exporter.onnx_format.reader import read_graph
from exporter.sources.module import quiet_stdout
from onnx_gpt.cli import main

SOURCE = """
import os
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, tokens):
        return self.head(self.table(tokens))


class Doubling(Plain):
    def forward(self, tokens):
        return super().forward(tokens) * (2 if tokens.shape[1] > 5 else 1)


def diverged():
    module = Plain()
    module.head.weight.data[0, 0] = float("nan")
    return module


def loud():
    os.write(1, b"written to the descriptor\\n")
    return Plain()
"""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "strange_decoders.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_module_that_does_something_else_for_few_tokens_is_refused(beside: Path) -> None:
    import onnx_gpt

    with pytest.raises(OnnxGptError, match="when others come after them"):
        onnx_gpt.optimize("module:strange_decoders:Doubling", beside / "out", parity=False)


def test_a_module_that_has_diverged_is_refused_by_the_name_of_its_weight(beside: Path) -> None:
    import onnx_gpt

    with pytest.raises(OnnxGptError, match=r"weights-not-finite.*is nan"):
        onnx_gpt.optimize("module:strange_decoders:diverged", beside / "out", parity=False)


def test_what_a_library_writes_is_no_part_of_the_json(
    beside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["optimize", "module:strange_decoders:loud", "-o", "out", "--no-parity", "--json"])
    assert ended.value.code == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["parity"] == "not run"
    assert "written to the descriptor" in err


def test_stdout_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_stdout():
        os.write(1, b"quiet")
    os.write(1, b"loud")
    assert capfd.readouterr() == ("loud", "quiet")


def test_a_graph_that_has_diverged_is_refused_by_the_name_of_its_weight(tmp_path: Path) -> None:
    graph = onnx.load(save_bundle(tmp_path, "none") / "model.onnx")
    head = next(tensor for tensor in graph.graph.initializer if tensor.name == "head")
    broken = numpy_helper.to_array(head).copy()
    broken[3, 5] = np.inf
    head.CopyFrom(numpy_helper.from_array(broken, "head"))
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(OnnxGptError, match=r"weights-not-finite.*head.*inf"):
        read_graph(tmp_path / "model.onnx")
