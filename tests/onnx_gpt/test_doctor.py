"""The doctor tells a fit machine from one that is not, and says what to do."""

from __future__ import annotations

import importlib.metadata
import json
import tomllib
from pathlib import Path

import pytest

from exporter.errors import Exit
from onnx_gpt import diagnosis as module
from onnx_gpt.cli import main
from onnx_gpt.diagnosis import Check, doctor
from onnx_gpt.machine import Machine, features_of, memory_of, this_machine, threads_of

INTEL = "processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"
MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    8000000 kB\n"


def found(name: str) -> Check:
    return next(check for check in doctor().checks if check.name == name)


def test_this_machine_is_fit() -> None:
    diagnosis = doctor()
    assert diagnosis.fit, diagnosis.checks
    names = [check.name for check in diagnosis.checks]
    assert {"python", "onnxruntime", "4-bit product", "cpu", "threads", "memory", "disk here"} <= set(names)
    assert len(set(names)) == len(names)


def test_features_threads_and_memory_are_read_as_systems_write_them() -> None:
    assert features_of(INTEL) == {"avx2", "avx512f", "avx512_vnni"}
    assert features_of(ARM) == {"asimddp", "i8mm"}
    assert features_of("nothing of the kind") is None
    assert threads_of(8, "") == threads_of(8, "max 100000") == 8
    assert threads_of(8, "200000 100000") == 2
    assert threads_of(8, "50000 100000") == 1
    assert memory_of(MEMINFO, "", "") == memory_of(MEMINFO, "max", "5") == (16_000_000 << 10, 8_000_000 << 10)
    assert memory_of(MEMINFO, "1000", "400") == (1000, 600)
    assert memory_of("", "1000", "1400") == (1000, 0)
    assert memory_of("", "", "") == (None, None)
    assert this_machine().threads >= 1


@pytest.mark.parametrize(
    ("features", "status"),
    [
        ({"avx2", "avx512_vnni"}, "ok"),
        ({"asimddp"}, "ok"),
        ({"avx2"}, "warning"),
        (set(), "warning"),
        (None, "warning"),
    ],
)
def test_a_cpu_without_integer_products_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, features: set[str] | None, status: str
) -> None:
    kind = None if features is None else frozenset(features)
    monkeypatch.setattr(module, "this_machine", lambda: Machine("Linux", "a CPU", kind, 2, None, None))
    assert found("cpu").status == status
    assert found("memory").status == "warning"


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "this_machine", lambda: Machine("Linux", "a CPU", None, 2, 4 << 30, 1 << 30))
    monkeypatch.setattr(module, "free_disk", lambda folder: 1 << 20)
    assert found("memory").remedy
    assert found("disk here").status == "warning"
    assert doctor().fit


def test_what_is_needed_and_missing_is_exit_status_8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name in ("gguf", "pyarrow"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "numpy" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    assert found("gguf").status == "missing"
    assert found("numpy").remedy.startswith("pip install 'numpy")
    assert (found("extra data").status, "parquet" in found("extra data").remedy) == ("warning", True)
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (stopped.value.code, document["fit"], document["schema"]) == (
        Exit.ENVIRONMENT,
        False,
        "onnx-gpt/doctor/1",
    )


def test_a_runtime_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._product

    def scaled() -> object:
        model = real()
        model.graph.initializer[1].raw_data = b"\0\0\0\x40"  # a scale of 2
        return model

    monkeypatch.setattr(module, "_product", scaled)
    assert found("4-bit product").status == "missing"
    monkeypatch.setattr(module, "_product", lambda: 1 / 0)
    assert not doctor().fit


def test_another_python_is_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PYTHONS", ((3, 20), (3, 22)))
    assert found("python").remedy == "use Python 3.20 to 3.21"


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("fit")
    assert "onnxruntime" in said


def test_every_extra_says_what_it_is_for() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(project["optional-dependencies"]) - set(module.NOT_ASKED) <= set(module.ALLOWS)
