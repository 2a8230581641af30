"""Every finding is found by its code where a folder is spoiled, and a repair takes every mechanical one away."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linted_folders import (
    OTHERS,
    SIZES,
    WEB,
    Spoil,
    dims,
    edit,
    good,
    link_out,
    model_path,
    packed,
    rename,
    set_keys,
)
from tiny import tiny
from tiny_decoders import EOS, LAYERS, save_bundle

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from exporter.families import families
from onnx_gpt.bundle.decoder_facts import DecoderFacts
from onnx_gpt.bundle.targets import BundleFacts, targets, web
from onnx_gpt.cli import main
from onnx_gpt.linting import expectation
from onnx_gpt.linting.checks import external
from onnx_gpt.linting.expectation import expectations
from onnx_gpt.linting.linter import lint
from onnx_gpt.linting.relaying import plan
from onnx_gpt.linting.repairing import repair
from onnx_gpt.linting.subject import read_subject

ROOT = Path(__file__).parents[2]
CASES = [("web", code, spoil) for code, spoil in WEB.items()] + [
    (*key, spoil) for key, spoil in OTHERS.items()
]
USUAL = {"left-padding", "keep-has-default"}
"""Codes of warnings that a tiny decoder has unspoilt."""

INDEPENDENT = {
    *(
        "batch-symbol",
        "cache-dim-open",
        "cache-names",
        "input-missing",
        "output-missing",
        "external-data-link",
    ),
    *(
        "config-graph-mismatch",
        "config-key-absent",
        "eos-absent",
        "eos-differs",
        "token-id-range",
        "input-unknown",
    ),
    *(
        "keep-has-default",
        "template-not-inline",
        "external-data-unlisted",
        "ir-version-newer",
        "external-data-name",
    ),
}
"""Ways to spoil a folder for the web that can come together, all of which a repair undoes."""

HEAVY = {"external-data-count", "protobuf-too-large", "tensor-too-large"}
"""Codes whose folders would have a hundred files, or gigabytes; `test_limits` makes them with smaller limits."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good folder for each target."""
    home = tmp_path_factory.mktemp("good")
    return {target: good(home / target, target) for target in expectations()}


def spoiled(folders: dict[str, Path], tmp_path: Path, target: str, spoil: Spoil) -> Path:
    folder = tmp_path / "spoiled"
    shutil.copytree(folders[target], folder, symlinks=True)
    spoil(folder)
    return folder


@pytest.mark.parametrize("target", expectations())
def test_a_good_folder_has_no_error_and_nothing_mechanical(folders: dict[str, Path], target: str) -> None:
    verdict = lint(folders[target], target)
    assert verdict.ok, verdict.findings
    assert not [finding for finding in verdict.findings if finding.mechanical and finding.code not in USUAL]


@pytest.mark.parametrize(("target", "code", "spoil"), CASES, ids=[f"{t}-{c}" for t, c, _ in CASES])
def test_a_finding_is_found_and_repaired_where_that_is_mechanical(
    folders: dict[str, Path], tmp_path: Path, target: str, code: str, spoil: Spoil
) -> None:
    folder = spoiled(folders, tmp_path, target, spoil)
    verdict = lint(folder, target)
    found = {finding.code: finding for finding in verdict.findings}
    assert code in found, verdict.findings
    page = " ".join((ROOT / "docs" / "linter.md").read_text("utf-8").split())
    told = re.search(rf"`{code}`(, `[a-z-]+`)* \(?✓", page) is not None
    assert told or not found[code].mechanical, f"docs/linter.md does not say that --fix answers {code}"
    assert all(finding.cause and finding.fix and finding.where for finding in verdict.findings)
    if not found[code].mechanical:
        return
    repaired = repair(folder, target, tmp_path / "repaired")
    assert not [finding for finding in repaired.after.findings if finding.mechanical], repaired.after.findings
    assert code not in {finding.code for finding in repaired.after.findings if finding.severity == "error"}
    assert repaired.changes
    assert lint(folder, target) == verdict  # the old folder is as it was


def test_every_code_has_a_folder_that_it_is_found_in() -> None:
    """Codes are read out of the checks, so that one without a test is found."""
    made = set()
    for path in (ROOT / "onnx_gpt" / "linting" / "checks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if called == "Finding" and isinstance(node.args[0], ast.Constant):  # type: ignore[attr-defined]
                made.add(node.args[0].value)  # type: ignore[attr-defined]
    assert made == {code for _, code, _ in CASES} | (HEAVY - {"tensor-too-large"})


def test_the_page_explains_every_code() -> None:
    text = (ROOT / "docs" / "linter.md").read_text("utf-8")
    assert [code for _, code, _ in CASES if f"`{code}`" not in text] == []


def test_limits(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With files of 40 kB at most the weights lie in several, and a tensor that no file holds is refused."""

    expected = dataclasses.replace(expectations()["web"], data_limit=40_000)
    monkeypatch.setattr(expectation, "expectations", lambda: {"web": expected})
    assert "external-data-large" in {f.code for f in lint(folders["web"], "web").findings}
    small = repair(folders["web"], "web", tmp_path / "small")
    assert small.after.ok
    names = sorted(path.name for path in (tmp_path / "small" / "onnx").iterdir())
    assert names == [
        "model.onnx",
        "model.onnx_data",
        *(f"model.onnx_data_{i}" for i in range(1, len(names) - 1)),
    ]
    assert len(names) > 2
    listed = json.loads((tmp_path / "small" / "config.json").read_text("utf-8"))["transformers.js_config"]
    assert listed["use_external_data_format"] == {"model.onnx": len(names) - 1}
    assert same_logits(folders["web"], tmp_path / "small")
    one = dataclasses.replace(expected, data_files=1)
    monkeypatch.setattr(expectation, "expectations", lambda: {"web": one})
    assert "external-data-count" in {f.code for f in lint(tmp_path / "small", "web").findings}
    with pytest.raises(OnnxGptError) as caught:
        plan(read_subject(folders["web"], "web").graphs[0], 4096)
    assert (caught.value.code, caught.value.exit) == ("tensor-too-large", Exit.UNSUPPORTED)
    monkeypatch.setattr(external, "PROTOBUF_LIMIT", 1000)
    assert "protobuf-too-large" in {f.code for f in lint(folders["web"], "web").findings}


def same_logits(a: Path, b: Path) -> bool:
    """Whether two folders' models say the same, bit by bit, of a prompt and of a token after it."""
    return all(np.array_equal(x, y) for x, y in zip(logits(a), logits(b), strict=True))


def logits(folder: Path) -> list[np.ndarray]:
    session = ort.InferenceSession(model_path(folder), providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if "key" in value.name or "value" in value.name:
            feeds[value.name] = np.zeros([1, 1, 0, 16], np.float32)
    ids = {value.name: value.type for value in session.get_inputs()}
    tokens = next(name for name in ids if name in ("input_ids", "tokens"))
    feeds[tokens] = np.array([[7, 8, 9]], np.int32 if "int32" in ids[tokens] else np.int64)
    feeds["attention_mask"] = np.ones([1, 3], np.int32 if "int32" in ids["attention_mask"] else np.int64)
    if "num_logits_to_keep" in ids:
        feeds["num_logits_to_keep"] = np.array(0, np.int64)
    return [np.asarray(output) for output in session.run(None, feeds)]


def test_a_decoder_with_names_types_and_dims_of_its_own_is_brought_to_the_contract(tmp_path: Path) -> None:
    """Everything at once, and the function stays bit for bit."""
    folder = save_bundle(tmp_path / "own", "shared", integers=6, open_head_dim=True, eos=EOS)  # 6: int32
    set_keys("config.json", model_type="llama", **SIZES)(folder)
    dims(0, "B")(folder)
    for i in range(LAYERS):
        for which in ("key", "value"):
            rename(f"past_key_values.{i}.{which}", f"old_{which}s_{i}")(folder)
            rename(f"present.{i}.{which}", f"new_{which}s_{i}")(folder)
    rename("input_ids", "tokens")(folder)
    rename("logits", "scores")(folder)
    for target in ("web", "optimum", "ort", "openvino", "genai"):
        repaired = repair(folder, target, tmp_path / target)
        assert repaired.after.ok, (target, repaired.after.findings)
        assert same_logits(folder, tmp_path / target), target


def test_a_repair_of_what_is_repaired_changes_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """Idempotent, and the same bytes every time."""
    first = repair(folders["web"], "web", tmp_path / "a")
    again = repair(tmp_path / "a", "web", tmp_path / "b")
    assert again.before.findings == again.after.findings == first.after.findings
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(codes=st.lists(st.sampled_from(sorted(INDEPENDENT)), min_size=2, max_size=5, unique=True))
def test_spoiled_in_several_ways(folders: dict[str, Path], tmp_path: Path, codes: list[str]) -> None:
    """Repairs do not undo one another, in whatever company, and the function stays bit for bit."""
    for name in ("spoiled", "repaired"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    folder = spoiled(folders, tmp_path, "web", lambda folder: [WEB[code](folder) for code in codes])
    repaired = repair(folder, "web", tmp_path / "repaired")
    assert repaired.after.ok, (codes, repaired.after.findings)
    assert not [finding for finding in repaired.after.findings if finding.mechanical]
    assert same_logits(folders["web"], tmp_path / "repaired")


def test_two_models_that_would_get_one_name_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "two"
    shutil.copytree(folders["ort"], folder)
    shutil.copy(folder / "model.onnx", folder / "another.onnx")
    with pytest.raises(OnnxGptError) as caught:
        repair(folder, "web", tmp_path / "out")
    assert caught.value.code == "repair-ambiguous"
    assert not (tmp_path / "out").exists()
    repaired = repair(folder / "model.onnx", "web", tmp_path / "one")
    assert repaired.after.ok


@pytest.mark.parametrize("spoil", [link_out, WEB["external-data-unusable"]])
def test_weights_that_cannot_be_had_are_not_repaired(
    folders: dict[str, Path], tmp_path: Path, spoil: Spoil
) -> None:
    folder = spoiled(folders, tmp_path, "web", spoil)
    assert "external-data-unusable" in {finding.code for finding in lint(folder, "web").findings}
    with pytest.raises(OnnxGptError) as caught:
        repair(folder, "web", tmp_path / "out")
    assert caught.value.exit == Exit.REJECTED
    assert not list(tmp_path.glob("*out*"))


def test_the_command_line(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Findings are on stdout as one document, what was changed on stderr, and the exit status tells."""
    folder = spoiled(folders, tmp_path, "web", WEB["batch-symbol"])

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", *arguments])
        code = stopped.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    status, out, _ = run(str(folder), "--target", "web", "--json")
    document = json.loads(out)
    assert (status, document["verdict"]) == (Exit.VERIFICATION, "fail")
    assert "batch-symbol" in {finding["code"] for finding in document["findings"]}
    status, out, _ = run(str(folder), "--target", "web")
    assert status == Exit.VERIFICATION
    assert "error [batch-symbol] onnx/model.onnx: past_key_values.0.key and 3 more" in out
    fix = ("--target", "web", "--fix", "-o", str(tmp_path / "fixed"))
    status, out, err = run(str(folder), *fix, "--json")
    assert (status, json.loads(out)["verdict"]) == (0, "pass")
    assert "the dim batch is batch_size" in err
    assert run(str(folder), *fix)[0] == Exit.EXISTS
    assert run(str(folder), "--fix")[0] == Exit.USAGE
    assert run(str(folder), "--target", "toaster")[0] == Exit.USAGE


def test_neither_torch_nor_a_session_is_needed(folders: dict[str, Path], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = sys.modules['onnxruntime'] = None\n"
        "import onnx_gpt\n"
        "assert onnx_gpt.lint(sys.argv[1], 'web').ok\n"
        "assert onnx_gpt.repair(sys.argv[1], 'genai', sys.argv[2]).after.ok\n"
    )
    command = [sys.executable, "-c", script, str(folders["web"]), str(tmp_path / "out")]
    subprocess.run(command, cwd=ROOT, check=True)


def test_memory_is_that_of_the_graph(tmp_path: Path) -> None:
    """A folder with 128 MB of weights is judged and repaired in a few MB: they pass by in pieces."""
    folder = good(tmp_path / "large", "ort")
    rows = 1 << 19

    def add(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer.add(name="large", data_type=1, dims=[rows, 64])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "large.bin"), ("offset", "0"), ("length", str(rows * 256))):
            tensor.external_data.add(key=key, value=value)

    edit(add)(folder)
    with (folder / "large.bin").open("wb") as file:
        file.truncate(rows * 256)
    script = (
        "import resource, sys\n"
        "from onnx_gpt.linting.repairing import repair\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "repair(sys.argv[1], 'web', sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)\n"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 48 << 10, "kilobytes"


@pytest.mark.parametrize("target", sorted(targets().keys() & expectations().keys()))
def test_our_own_bundles_are_what_their_runtimes_expect(target: str, tmp_path: Path) -> None:
    """The linter knows a runtime by its sources, a target knows how to write for it: they agree."""
    asked = (
        "web:q8+q4" if target == "web" else target
    )  # the others take as long again, and differ in nothing here
    onnx_gpt.optimize("sample:tiny", tmp_path / "out", target=asked, parity=False, verify=False)
    verdict = lint(tmp_path / "out", target)
    assert verdict.ok, verdict.findings
    assert not [finding for finding in verdict.findings if finding.mechanical], verdict.findings


@pytest.mark.parametrize(
    ("floats", "spoil", "name"),
    [
        (onnx.TensorProto.FLOAT, None, "model.onnx"),
        (onnx.TensorProto.FLOAT16, None, "model_fp16.onnx"),
        (onnx.TensorProto.FLOAT, packed, "model_q4.onnx"),
        (onnx.TensorProto.FLOAT16, packed, "model_q4f16.onnx"),
    ],
)
def test_a_model_gets_the_name_of_what_it_holds(
    tmp_path: Path, floats: int, spoil: Callable[[onnx.ModelProto], None] | None, name: str
) -> None:
    """transformers.js opens a model by the dtype in its name."""
    folder = save_bundle(tmp_path / "some", "shared", floats=floats, eos=EOS)
    set_keys("config.json", model_type="llama", **SIZES)(folder)
    if spoil is not None:
        edit(spoil)(folder)
    assert repair(folder, "web", tmp_path / "web").after.ok
    assert [path.name for path in (tmp_path / "web" / "onnx").glob("*.onnx")] == [name]
    own = json.loads((tmp_path / "web" / "config.json").read_text("utf-8"))["transformers.js_config"]
    assert own["dtype"] == (name.removesuffix(".onnx").partition("_")[2] or "fp32")


@pytest.mark.parametrize("family", sorted(families()))
def test_transformers_js_makes_the_cache_of_every_family(family: str) -> None:
    """It looks by model_type: a bundle of a type that it does not know would open with another cache, or none."""
    given = tiny(family).config
    decoder = DecoderFacts(
        2, heads=4, kv_heads=2, head_dim=16, hidden_size=64, vocab_size=131, context_length=64
    )
    config = json.loads(web.files(BundleFacts(decoder, given, {}))["config.json"])
    own = given["model_type"]
    assert config["model_type"] == (own if own in web.LAYER_KEYS else web.PLAIN)
    assert config[web.LAYER_KEYS[config["model_type"]]] == 2
