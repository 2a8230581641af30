"""What a certificate says: digests that depend on what they should and on nothing else, probes, what was not run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny import tiny

import onnx_gpt
from exporter import sources
from exporter.checkpoint import Checkpoint
from exporter.onnx_format.reader import read_file
from exporter.stored_weights import Stored
from exporter.weights import Array
from onnx_gpt.certificate import canonical, merkle
from onnx_gpt.certificate.files import CHECKSUMS, checksums_text, names_below, parse_checksums
from onnx_gpt.certificate.graph_digest import graph_digest
from onnx_gpt.certificate.probes import coarse_kl
from onnx_gpt.certificate.schema import CERTIFICATE, Certificate, parse, seal_holds
from onnx_gpt.certificate.source import source_digests
from onnx_gpt.certificate.tensors import merkle_root, tensor_digests
from onnx_gpt.certificate.verification import verify
from onnx_gpt.parity.metrics import divergence, log_softmax

ROOT = Path(__file__).parents[2]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def certificate_of(bundle: Path) -> Certificate:
    return parse((bundle / CERTIFICATE).read_bytes())


# Canonical JSON, hash tree, SHA256SUMS ----------------------------------------------------------------------


@given(JSON)
def test_a_value_has_one_spelling_and_the_layout_reads_back(value: object) -> None:
    encodable = json.loads(json.dumps(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    assert json.loads(canonical.laid_out(encodable, depth=2)) == encodable
    shuffled = json.loads(json.dumps(encodable, indent=3, sort_keys=True))
    assert canonical.digest(shuffled) == canonical.digest(encodable)


def test_not_a_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="compliant"):
        canonical.digest({"a": float("nan")})


def test_times_are_left_out_however_deep() -> None:
    value = {"stages": [{"name": "load", "seconds": 1.5, "peak_rss_bytes": 7}], "seconds": 2}
    assert canonical.without(value, canonical.VOLATILE) == {"stages": [{"name": "load"}]}


def test_the_hash_tree_is_that_of_rfc_9162() -> None:
    """Roots of the first leaves of Certificate Transparency's own test data."""
    data = [b"", b"\x00", b"\x10", b"\x20\x21", b"\x30\x31", b"\x40\x41\x42\x43"]
    roots = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    }
    for count, root in roots.items():
        assert merkle.root([merkle.leaf(item) for item in data[:count]]).hex() == root


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1), st.binary())
)
def test_sha256sums_read_back(contents: dict[str, bytes]) -> None:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    text = checksums_text(digests).encode()
    assert parse_checksums(text) == digests
    for at in range(0, len(text), max(1, len(text) // 7)):
        changed = bytearray(text)
        changed[at] ^= 0x20
        assert parse_checksums(bytes(changed)) != digests


# Graph and weights ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How the same small graph is written down."""

    prefix: str = ""
    seed: int | None = None
    scale: float = 0.5
    exchanged: bool = False
    dead: bool = False
    axis: int = 1
    table: float = 1.0


def written(folder: Path, spelling: Spelling = Spelling()) -> Path:
    p = spelling.prefix
    a, b = (f"{p}b", f"{p}a") if spelling.exchanged else (f"{p}a", f"{p}b")
    nodes = [
        helper.make_node("MatMul", ["x", a], [f"{p}left"], name=f"{p}1"),
        helper.make_node("MatMul", ["x", b], [f"{p}right"], name=f"{p}2"),
        helper.make_node("LeakyRelu", [f"{p}left"], [f"{p}bent"], name=f"{p}3", alpha=spelling.scale),
        helper.make_node("Concat", [f"{p}bent", f"{p}right"], ["y"], name=f"{p}4", axis=spelling.axis),
    ]
    if spelling.dead:
        nodes.insert(0, helper.make_node("Neg", ["x"], [f"{p}dead"]))
    draw = np.random.default_rng(1)
    arrays = [draw.standard_normal((32, 32)).astype(np.float32) * spelling.table for _ in range(2)]
    weights = [numpy_helper.from_array(array, f"{p}{name}") for name, array in zip("ab", arrays, strict=True)]
    if spelling.seed is not None:
        chance = random.Random(spelling.seed)
        order = {0: nodes[:2], 1: weights}
        for part in order.values():
            chance.shuffle(part)
        nodes[:2], weights = order[0], order[1]
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 32), ("y", 64))
    )
    graph = helper.make_graph(nodes, f"{p}graph", [x], [y], weights, doc_string=p)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name=p)
    path = folder / f"{abs(hash(spelling))}.onnx"
    onnx.save(model, path)
    return path


def digests(path: Path) -> tuple[str, str]:
    model = read_file(path)
    return graph_digest(model), graph_digest(model, tensor_digests(model.graph))


@pytest.mark.parametrize("seed", range(4))
def test_a_graphs_digest_knows_no_names_and_no_order(tmp_path: Path, seed: int) -> None:
    plain = digests(written(tmp_path))
    assert digests(written(tmp_path, Spelling(prefix="other/", seed=seed))) == plain


@pytest.mark.parametrize("change", [{"scale": 0.25}, {"dead": True}, {"axis": -1}])
def test_a_graphs_digest_knows_what_is_computed(tmp_path: Path, change: dict[str, float]) -> None:
    plain, bound = digests(written(tmp_path))
    other = digests(written(tmp_path, dataclasses.replace(Spelling(), **change)))
    assert other[0] != plain and other[1] != bound


@pytest.mark.parametrize("change", [{"table": 2.0}, {"exchanged": True}])
def test_weights_count_in_the_bound_digest_alone(tmp_path: Path, change: dict[str, float]) -> None:
    plain, bound = digests(written(tmp_path))
    other = digests(written(tmp_path, dataclasses.replace(Spelling(), **change)))
    assert other[0] == plain and other[1] != bound


def test_tensors_count_by_name_type_dims_and_bytes(tmp_path: Path) -> None:
    facts = tensor_digests(read_file(written(tmp_path)).graph)
    array = np.random.default_rng(1).standard_normal((32, 32)).astype("<f4")
    assert facts["a"] == f"float[32,32] {hashlib.sha256(array.tobytes()).hexdigest()}"
    swapped = {"a": facts["b"], "b": facts["a"]}
    assert len({merkle_root(facts), merkle_root(swapped), merkle_root({"a": facts["a"]})}) == 3


# The source -------------------------------------------------------------------------------------------------


def test_a_sources_digest_is_that_of_its_files_wherever_they_lie(tmp_path: Path) -> None:
    home = ROOT / "samples" / "tiny"
    found = source_digests(sources.load(str(home)))
    assert found["model.safetensors"] == hashlib.sha256((home / "model.safetensors").read_bytes()).hexdigest()
    assert {"[config]", "tokenizer.json", "model.safetensors"} <= found.keys()
    copied = shutil.copytree(home, tmp_path / "elsewhere")
    assert source_digests(sources.load(str(copied))) == found
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 2e-5}))
    changed = source_digests(sources.load(str(copied)))
    assert {name for name in found if changed[name] != found[name]} == {"[config]"}


def test_two_files_of_one_name_both_count(tmp_path: Path) -> None:
    weights = {}
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_bytes(name.encode().ljust(16))
        weights[name] = Stored(tmp_path / name / "w.bin", 0, "F32", (4,), name)
    found = source_digests(Checkpoint("somewhere", {}, weights))
    assert {"one/w.bin", "other/w.bin"} < found.keys()


def test_arrays_in_memory_have_a_digest() -> None:
    checkpoint = tiny("llama")
    found = source_digests(checkpoint)
    name = next(iter(checkpoint.weights))
    array = checkpoint.weights[name].read().copy()
    array.flat[3] += 1
    changed = dataclasses.replace(checkpoint, weights={**checkpoint.weights, name: Array(array)})
    assert source_digests(changed)["[tensors]"] != found["[tensors]"]


# Bundles ----------------------------------------------------------------------------------------------------


def test_a_certificate_says_what_the_bundle_is(certified: tuple[Path, onnx_gpt.Report]) -> None:
    bundle, report = certified
    found = certificate_of(bundle)
    assert report.certificates == {"ort": hashlib.sha256((bundle / CERTIFICATE).read_bytes()).hexdigest()}
    assert seal_holds((bundle / CERTIFICATE).read_bytes())
    assert set(found.files) | {"report.json", CERTIFICATE, CHECKSUMS} == set(names_below(bundle))
    assert found.pipelines == {"model.onnx": report.pipeline} and found.recipe["quantize"] == "int4"
    assert found.source.uri == "sample:tiny" and "model.safetensors" in found.source.parts
    assert found.versions.keys() >= {"onnx-gpt", "onnxruntime", "onnx_ir", "numpy", "python"}
    assert found.parity["model.onnx"]["verdict"] == "pass"
    written = json.loads((bundle / "report.json").read_text("utf-8"))
    assert found.parity["model.onnx"] == written["parity"]
    assert found.trace["model.onnx"].rounded >= 4 * 4 and not found.trace["model.onnx"].untraced
    assert len(found.probes.cases) >= 1 and found.probes.independent
    assert found.not_run == ()


def test_the_same_job_gives_the_same_certificate(tmp_path: Path) -> None:
    """Byte for byte, with its probes; only the times in report.json differ."""
    made = [onnx_gpt.optimize("sample:tiny", tmp_path / name, quantize="int8", parity=False) for name in "ab"]
    assert made[0].certificates == made[1].certificates
    reports = [json.loads((tmp_path / name / "report.json").read_text("utf-8")) for name in "ab"]
    assert reports[0]["stages"] != reports[1]["stages"]


def test_without_parity_a_certificate_says_so_and_its_probes_are_its_own(tmp_path: Path) -> None:
    onnx_gpt.optimize("sample:tiny", tmp_path / "out", target=("ort", "genai"), parity=False)
    for target in ("ort", "genai"):
        found = certificate_of(tmp_path / "out" / target)
        assert found.target == target and found.parity == {"model.onnx": "not run"}
        assert not found.probes.independent and "itself" in found.probes.reference
        assert "model.onnx: parity with a reference" in found.not_run
        assert verify(tmp_path / "out" / target).verdict == "pass"
    (only,) = verify(tmp_path / "out").violations
    assert only.code == "certificate-missing" and "genai, ort" in only.cause


def test_a_bundle_without_probes_does_not_pass_for_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_gpt.certificate.issuing.LARGEST_UNASKED", 1000)
    onnx_gpt.optimize("sample:tiny", tmp_path / "out", parity=False)
    found = verify(tmp_path / "out")
    assert [entry.code for entry in found.violations] == ["probes-missing"]
    assert verify(tmp_path / "out", level="structure").verdict == "pass"


def test_a_graph_that_somebody_exported_is_certified_by_its_file(tmp_path: Path) -> None:
    onnx_gpt.optimize("sample:tiny", tmp_path / "first", parity=False)
    path = tmp_path / "first" / "model.onnx"
    found = source_digests(sources.load(str(path)))
    data = (tmp_path / "first" / "model.onnx.data").read_bytes()
    assert found["model.onnx.data"] == hashlib.sha256(data).hexdigest()
    assert found["model.onnx"] == hashlib.sha256(path.read_bytes()).hexdigest()


# Probes -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_the_probes_divergence_is_at_most_the_whole_one(seed: int) -> None:
    draw = np.random.default_rng(seed)
    theirs, ours = (
        log_softmax(draw.normal(0, draw.uniform(0.1, 8), (3, 50)).astype(np.float32)) for _ in "ab"
    )
    top = np.argsort(-theirs, axis=1)[:, :8]
    coarse = coarse_kl(*(np.take_along_axis(rows, top, axis=1) for rows in (theirs, ours)))
    assert (coarse <= divergence(ours, theirs) + 1e-9).all()
    assert (coarse_kl(*(np.take_along_axis(theirs, top, axis=1),) * 2) < 1e-9).all()
