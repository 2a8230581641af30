"""Whatever is done to a bundle is found and named: the tamper matrix, hostile certificates, the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.certificate import schema
from onnx_gpt.certificate.files import CHECKSUMS, checksums_text, digests_of, names_below
from onnx_gpt.certificate.schema import CERTIFICATE, seal_of
from onnx_gpt.certificate.verification import Verification, verify
from onnx_gpt.certificate.violations import CODES

ROOT = Path(__file__).parents[2]
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(certified: tuple[Path, onnx_gpt.Report], tmp_path: Path) -> Path:
    return Path(shutil.copytree(certified[0], tmp_path / "copy"))


def codes(found: Verification) -> set[str]:
    return {entry.code for entry in found.violations}


def subjects(found: Verification) -> str:
    return " ".join(entry.subject for entry in found.violations)


def edit(folder: Path, change: Edit, *, sealed: bool = True) -> None:
    """Change fields of a certificate; with its seal made new, and SHA256SUMS with it."""
    document = json.loads((folder / CERTIFICATE).read_text("utf-8"))
    change(document)
    if sealed:
        document["seal"] = seal_of(document)
    (folder / CERTIFICATE).write_text(json.dumps(document), "utf-8")
    list_again(folder)


def list_again(folder: Path) -> None:
    names = [name for name in names_below(folder) if name != CHECKSUMS]
    (folder / CHECKSUMS).write_text(checksums_text(digests_of(folder, names)), "utf-8")


def certify_file(folder: Path, name: str) -> None:
    """Let the certificate say of a file what is there now: what somebody does who covers his tracks."""

    def change(document: dict[str, Any]) -> None:
        data = digests_of(folder, [name])[name]
        document["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": data}

    edit(folder, change)


# A bundle as it was made ------------------------------------------------------------------------------------


def test_a_fresh_bundle_is_what_its_certificate_says(certified: tuple[Path, onnx_gpt.Report]) -> None:
    bundle, report = certified
    found = verify(bundle)
    assert (found.verdict, found.violations) == ("pass", ())
    assert found.run == ("integrity", "structure", "parity")
    assert found.certificate == report.certificates["ort"]
    assert "torch" in found.reference and set(found.probes["model.onnx"]) == {"prefill", "decode"}
    assert found.probes["model.onnx"]["prefill"].drift < 1e-9
    assert found.probes["model.onnx"]["prefill"].reference > 1e-6, "int4 is not float"
    assert found.not_run == ()


def test_coreutils_check_a_bundle_without_any_python(certified: tuple[Path, onnx_gpt.Report]) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no coreutils here")
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", CHECKSUMS], cwd=certified[0], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_verify_needs_neither_torch_nor_the_source(copy: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors', 'gguf'): sys.modules[name] = None\n"
        "from onnx_gpt.certificate.verification import verify\n"
        "found = verify(sys.argv[1])\n"
        "print(found.verdict, found.run, found.violations)\n"
        "assert found.verdict == 'pass' and 'parity' in found.run\n"
    )
    command = [sys.executable, "-c", script, str(copy)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# The tamper matrix ------------------------------------------------------------------------------------------


def test_one_bit_anywhere_is_found_and_the_file_named(copy: Path) -> None:
    draw = np.random.default_rng(0)
    tried = 0
    for name in names_below(copy):
        path = copy / name
        whole = path.read_bytes()
        offsets = {0, len(whole) // 2, len(whole) - 1, *draw.integers(0, len(whole), 4)}
        for offset in map(int, offsets):
            bit = 1 << int(draw.integers(8))
            changed = bytearray(whole)
            changed[offset] ^= bit
            path.write_bytes(changed)
            found = verify(copy, level="integrity")
            assert found.verdict == "fail", f"bit {bit} of byte {offset} of {name}"
            assert name in subjects(found), f"bit {bit} of byte {offset} of {name}: {found.violations}"
            tried += 1
        path.write_bytes(whole)
    assert tried >= 50
    assert verify(copy, level="integrity").verdict == "pass"


def test_a_flipped_weight_is_named_by_its_tensor(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "layers.2.ffn.up.codes")
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    data = bytearray((copy / "model.onnx.data").read_bytes())
    data[offset + 7] ^= 0x10
    (copy / "model.onnx.data").write_bytes(data)
    found = verify(copy)
    assert codes(found) == {"file-digest", "weights-differ"}
    assert "model.onnx: layers.2.ffn.up.codes" in subjects(found)
    assert found.run == ("integrity", "structure"), "what is not certified is not run"


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "model.onnx.data", "report.json", CHECKSUMS, "config.json"]
)
def test_a_file_that_is_gone_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    found = verify(copy)
    assert ("file-missing", name) in {(entry.code, entry.subject) for entry in found.violations}


def test_a_file_that_nobody_certified_is_named(copy: Path) -> None:
    (copy / "extra").mkdir()
    (copy / "extra" / "payload.bin").write_bytes(b"x")
    found = verify(copy)
    assert [(entry.code, entry.subject) for entry in found.violations] == [
        ("file-extra", "extra/payload.bin")
    ]


def test_a_renamed_file_is_named_with_both_names(copy: Path) -> None:
    (copy / "tokenizer.json").rename(copy / "tokens.json")
    found = verify(copy, level="integrity")
    (only,) = found.violations
    assert (only.code, only.subject) == ("file-renamed", "tokenizer.json") and "tokens.json" in only.cause


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "report.json", CERTIFICATE, CHECKSUMS])
def test_links_are_refused(copy: Path, tmp_path: Path, name: str) -> None:
    away = tmp_path / "away"
    (copy / name).rename(away)
    (copy / name).symlink_to(away)
    assert verify(copy).verdict == "fail" and name in subjects(verify(copy))
    (copy / name).unlink()
    os.link(away, copy / name)
    found = verify(copy)
    assert codes(found) == {"file-hard-link"} and subjects(found) == name


def test_a_folder_or_a_pipe_in_a_files_place_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    os.mkfifo(copy / "config.json")
    found = verify(copy)
    assert ("file-irregular", "config.json") in {(entry.code, entry.subject) for entry in found.violations}
    (copy / "config.json").unlink()
    (copy / "config.json").mkdir()
    assert "file-missing" in codes(verify(copy))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["probes"]["models"]["model.onnx"].update(max_kl=9.0),
        lambda d: d["parity"]["model.onnx"]["limits"].update(max_kl=9.0),
        lambda d: d["parity"]["model.onnx"].update(verdict="pass "),
        lambda d: d["graphs"]["model.onnx"].update(digest="0" * 64),
        lambda d: d["files"].pop("tokenizer.json"),
        lambda d: d.update(not_run=["nothing"]),
        lambda d: d["source"].update(uri="sample:other"),
    ],
)
def test_an_edited_field_breaks_the_seal(copy: Path, change: Edit) -> None:
    edit(copy, change, sealed=False)
    assert "certificate-seal" in codes(verify(copy, level="integrity"))


def test_a_threshold_edited_in_the_report_is_named(copy: Path) -> None:
    report = json.loads((copy / "report.json").read_text("utf-8"))
    report["parity"]["limits"]["max_kl"] = 9.0
    (copy / "report.json").write_text(json.dumps(report), "utf-8")
    list_again(copy)
    (only,) = verify(copy).violations
    assert (only.code, only.subject) == ("report-differs", "report.json") and "thresholds" in only.cause


def test_a_reports_times_are_not_the_certificates_business_but_its_bytes_are_listed(copy: Path) -> None:
    report = json.loads((copy / "report.json").read_text("utf-8"))
    report["stages"][0]["seconds"] += 1.0
    (copy / "report.json").write_text(json.dumps(report), "utf-8")
    assert [entry.code for entry in verify(copy).violations] == ["file-digest"]
    list_again(copy)
    assert verify(copy).verdict == "pass"


def test_a_swapped_tokenizer_is_found_even_if_its_digest_is_certified_again(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["vocab"]["zebra"] = 4096
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    assert subjects(verify(copy, level="integrity")) == "tokenizer.json"
    certify_file(copy, "tokenizer.json")
    (only,) = verify(copy).violations
    assert (only.code, only.subject) == ("config", "tokenizer.json") and "4096" in only.cause


def test_a_configuration_of_another_model_is_found_even_if_certified_again(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"n_head": 7, "eos_token_id": 70000}), "utf-8")
    certify_file(copy, "config.json")
    assert [entry.code for entry in verify(copy).violations] == ["config", "config"]


def test_weights_that_change_places_are_named(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    one, other = (
        next(t for t in model.graph.initializer if t.name == f"layers.{i}.attention.o.codes") for i in (0, 2)
    )
    places = [[(entry.key, entry.value) for entry in t.external_data] for t in (one, other)]
    for tensor, place in ((one, places[1]), (other, places[0])):
        del tensor.external_data[:]
        for key, value in place:
            tensor.external_data.add(key=key, value=value)
    onnx.save(model, copy / "model.onnx")
    certify_file(copy, "model.onnx")
    found = verify(copy)
    assert codes(found) == {"weights-swapped"} and len(found.violations) == 2
    assert "layers.2.attention.o.codes" in found.violations[0].cause


def test_nodes_that_read_each_others_weights_are_found(copy: Path) -> None:
    """Names change places and nothing else: every tensor is as certified, and so is the graph without them."""
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    names = {"layers.0.attention.o.codes": "layers.2.attention.o.codes"}
    names |= {value: key for key, value in names.items()}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    onnx.save(model, copy / "model.onnx")
    certify_file(copy, "model.onnx")
    assert codes(verify(copy)) == {"weights-bound"}


def test_a_changed_graph_is_found(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "SkipLayerNormalization")
    next(a for a in node.attribute if a.name == "epsilon").f = 1e-3
    onnx.save(model, copy / "model.onnx")
    certify_file(copy, "model.onnx")
    assert codes(verify(copy)) == {"graph-digest"}


def test_a_graph_that_breaks_the_contract_is_found(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    past = next(value for value in model.graph.input if value.name == "past_key_values.1.key")
    past.type.tensor_type.shape.dim[0].dim_param = "B"
    onnx.save(model, copy / "model.onnx")
    certify_file(copy, "model.onnx")
    assert codes(verify(copy)) == {"graph-digest", "contract"}


def test_without_a_certificate_nothing_is_certified(copy: Path) -> None:
    (copy / CERTIFICATE).unlink()
    assert codes(verify(copy)) == {"certificate-missing"}


def test_the_certificate_of_another_bundle_is_found(copy: Path, tmp_path: Path) -> None:
    onnx_gpt.optimize("sample:tiny", tmp_path / "other", quantize="int8", parity=False)
    shutil.copy(tmp_path / "other" / CERTIFICATE, copy / CERTIFICATE)
    found = verify(copy)
    assert {"checksums", "file-size", "graph-digest", "report-differs"} <= codes(found)
    (tmp_path / "other" / "config.json").unlink()
    assert verify(tmp_path / "other").verdict == "fail"


def test_the_digest_that_was_printed_finds_whoever_certifies_again(copy: Path) -> None:
    pinned = verify(copy).certificate
    assert verify(copy, certificate_digest=pinned.upper()).verdict == "pass"
    edit(copy, lambda d: d["probes"]["models"]["model.onnx"].update(max_kl=9.0))
    assert verify(copy).verdict == "pass", "a certificate alone cannot tell who wrote it"
    assert codes(verify(copy, certificate_digest=pinned)) == {"certificate-digest"}


def test_probes_find_what_digests_that_were_made_again_do_not(copy: Path) -> None:
    """A bundle whose weights were changed and whose every digest was certified again is still another model."""
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    data = bytearray((copy / "model.onnx.data").read_bytes())
    for tensor in (t for t in model.graph.initializer if t.name.endswith(".ffn.down.codes")):
        place = {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        data[place["offset"] : place["offset"] + place["length"]] = bytes(place["length"])
    (copy / "model.onnx.data").write_bytes(data)
    from exporter.onnx_format.reader import read_file
    from onnx_gpt.certificate.issuing import graph_facts_of

    facts = graph_facts_of(read_file(copy / "model.onnx")).model_dump(mode="json")
    edit(copy, lambda d: d["graphs"].update({"model.onnx": facts}))
    certify_file(copy, "model.onnx.data")
    found = verify(copy)
    assert codes(found) == {"probe-reference", "probe-drift", "probe-steps"}


def test_every_violation_is_listed(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "extra.txt").write_text("x")
    (copy / "config.json").write_text("{", "utf-8")
    found = verify(copy)
    assert {"file-missing", "file-extra", "file-size", "config"} <= codes(found)


def test_an_attribute_of_another_kind_is_a_violation(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    heads = [a for node in model.graph.node for a in node.attribute if a.name == "num_heads"]
    for attribute in heads:
        attribute.CopyFrom(onnx.helper.make_attribute("num_heads", "four"))
    onnx.save(model, copy / "model.onnx")
    assert heads and "graph-digest" in codes(verify(copy, level="structure"))


# Hostile certificates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "JSON"),
        (b"[]", "JSON object"),
        (b"\xff\xfe", "JSON"),
        (b'{"a": ' * 200_000 + b"1" + b"}" * 200_000, "nested"),
        (b'{"schema": NaN}', "NaN"),
        (b'{"schema": "x", "schema": "y"}', "twice"),
        (b'{"schema": "onnx-gpt/certificate/99"}', "onnx-gpt/certificate/99"),
        (b'{"schema": ' + b"1" * 10_000 + b"}", "JSON"),
    ],
)
def test_what_is_no_certificate_is_one_clear_violation(copy: Path, raw: bytes, word: str) -> None:
    (copy / CERTIFICATE).write_bytes(raw)
    (only,) = verify(copy).violations
    assert only.code == "certificate-invalid" and word in only.cause


def replaced(path: str, value: Any) -> Edit:
    def change(document: dict[str, Any]) -> None:
        *way, last = path.split("/")
        at: Any = document
        for key in way:
            at = at[int(key)] if isinstance(at, list) else at[key]
        at[last if isinstance(at, dict) else int(last)] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced("files", {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
        replaced("files", {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}),
        replaced("files", {"a\\b": {"bytes": 1, "sha256": "0" * 64}}),
        replaced("files", {"a\nb": {"bytes": 1, "sha256": "0" * 64}}),
        replaced("graphs", {"../model.onnx": {}}),
        replaced("files/config.json/bytes", 10**30),
        replaced("files/config.json/bytes", -1),
        replaced("files/config.json/sha256", "z" * 64),
        replaced("probes/cases/0/tokens", [-1]),
        replaced("probes/cases/0/tokens", [0] * 70_000),
        replaced("probes/cases/0/positions", [10**9]),
        replaced("probes/cases/0/top", [[1], [2, 3]]),
        replaced("probes/models/model.onnx/max_kl", -1.0),
        replaced("probes/models/model.onnx/max_kl", "1e999"),
        replaced("probes/models/model.onnx/built", []),
        replaced("probes/models", {"../model.onnx": {}}),
        replaced("unknown", True),
    ],
)
def test_fields_out_of_range_are_named(copy: Path, change: Edit) -> None:
    edit(copy, change)
    (only,) = verify(copy).violations
    assert only.code == "certificate-invalid" and "wrong" in only.cause


def test_probes_beyond_the_vocabulary_are_a_violation(copy: Path) -> None:
    edit(copy, replaced("probes/cases/0/tokens/5", 5000))
    (only,) = verify(copy).violations
    assert only.code == "probe-failed" and "5000" in only.cause


def test_a_certificate_that_is_too_large_is_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_gpt.certificate.integrity.LIMIT", 1000)
    assert codes(verify(copy)) == {"certificate-invalid"}
    assert schema.LIMIT >= 1 << 20


def test_strange_names_of_files_can_be_printed(copy: Path) -> None:
    (copy / os.fsdecode(b"bad\xff\nname")).write_bytes(b"")
    (only,) = verify(copy, level="integrity").violations
    assert only.subject.isprintable()


# The command ------------------------------------------------------------------------------------------------


def command(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    from onnx_gpt.cli import main

    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0), capsys.readouterr().out


def test_the_command_prints_and_exits_with_6(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = command("verify", copy, capsys=capsys)
    assert status == 0 and "pass" in out
    (copy / "config.json").write_text("{}", "utf-8")
    status, out = command("verify", copy, "--json", "--level", "structure", capsys=capsys)
    document = json.loads(out)
    assert status == Exit.VERIFICATION and document["verdict"] == "fail"
    assert [entry["code"] for entry in document["violations"]] == ["file-size"]
    status, out = command("verify", copy, capsys=capsys)
    assert status == Exit.VERIFICATION and "file-size" in out and "config.json" in out


def test_what_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError, match="no folder") as caught:
        verify(tmp_path / "nowhere")
    assert caught.value.code == "bundle-missing"
    assert codes(verify(tmp_path)) == {"certificate-missing"}
    with pytest.raises(OnnxGptError) as caught:
        verify(tmp_path, level="everything")  # type: ignore[arg-type]
    assert caught.value.exit == Exit.USAGE


def test_every_code_is_documented_with_its_meaning() -> None:
    text = (ROOT / "docs" / "certificate.md").read_text("utf-8").split("## Violations")[1]
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    assert listed == CODES.keys()
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "onnx_gpt" / "certificate").glob("*.py"))
    for code in CODES:
        assert sources.count(f'"{code}"') >= 2, f"{code} is never given"
