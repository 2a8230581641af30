"""The workflow in docs/release-pipeline.md, run: its `run` lines in bash, its outputs handed from job to job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
yaml = pytest.importorskip("yaml")


def workflow() -> dict[str, Any]:
    text = (ROOT / "docs" / "release-pipeline.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    document: dict[str, Any] = yaml.safe_load(block)
    return document


class Runner:
    """As much of GitHub Actions as the workflow uses. All jobs share one folder: that is what artifacts come to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document = workflow()
        self.outputs: dict[str, Mapping[str, str]] = {}
        (folder / "samples").symlink_to(ROOT / "samples")
        tools = folder / "tools"
        tools.mkdir()
        for name, module in (("onnx-gpt", "-m onnx_gpt"), ("python", "")):
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
            (tools / name).chmod(0o755)
        (folder / "without_torch").mkdir()
        (folder / "without_torch" / "torch.py").write_text(
            "raise ImportError('there is no torch on a device')\n"
        )

    def job(self, name: str, *, torch: bool) -> list[subprocess.CompletedProcess[str]]:
        """Run a job's steps until one fails."""
        job = self.document["jobs"][name]
        steps: dict[str, Mapping[str, str]] = {}
        done: list[subprocess.CompletedProcess[str]] = []
        for step in job["steps"]:
            if "run" not in step or step.get("name") == "install":
                continue
            written = self.folder / "output"
            written.write_text("")
            python = [str(ROOT), *([] if torch else [str(self.folder / "without_torch")])]
            environment = {
                **os.environ,
                **{key: str(value) for key, value in self.document["env"].items()},
                "GITHUB_OUTPUT": str(written),
                "PATH": f"{self.folder / 'tools'}:{os.environ['PATH']}",
                "PYTHONPATH": ":".join(reversed(python)),
            }
            line = self.filled(step["run"], steps)
            done.append(
                subprocess.run(
                    ["bash", "-e", "-o", "pipefail", "-c", line],
                    cwd=self.folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            )
            if done[-1].returncode:
                return done
            if "id" in step:
                steps[step["id"]] = dict(pair.split("=", 1) for pair in written.read_text().splitlines())
        self.outputs[name] = {key: self.filled(value, steps) for key, value in job.get("outputs", {}).items()}
        return done

    def filled(self, text: str, steps: Mapping[str, Mapping[str, str]]) -> str:
        def value(match: re.Match[str]) -> str:
            scope, name, key = match[1], match[2], match[3]
            return {"steps": steps, "needs": self.outputs}[scope][name][key]

        return re.sub(r"\$\{\{ (steps|needs)\.(\w+)\.outputs\.(\w+) \}\}", value, text)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("workflow"))
    (built,) = runner.job("build", torch=True)
    assert built.returncode == 0, built.stderr
    yield runner


def test_the_pipeline_runs_from_the_checkpoint_to_the_release(runner: Runner) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", runner.outputs["build"]["certificate"])
    device = runner.job("device", torch=False)
    assert [step.returncode for step in device] == [0, 0], device[-1].stderr
    assert "integrity, structure, parity: pass" in device[0].stdout and device[1].stdout.strip()
    published = runner.job("publish", torch=False)
    assert [step.returncode for step in published] == [0, 0], published[-1].stderr


def test_the_pipeline_stops_where_the_bundle_changes_on_its_way(runner: Runner) -> None:
    """Somebody swaps the tokenizer and writes the sums again."""
    path, sums = runner.folder / "bundle" / "tokenizer.json", runner.folder / "bundle" / "SHA256SUMS"
    whole, listed = path.read_bytes(), sums.read_bytes()
    path.write_bytes(whole.replace(b'"', b' "', 1))
    again = "cd bundle && sha256sum $(ls | grep -v SHA256SUMS) > SHA256SUMS"
    subprocess.run(["bash", "-ec", again], cwd=runner.folder, check=True)
    (stopped,) = runner.job("device", torch=False)
    assert stopped.returncode == 6 and "tokenizer.json" in stopped.stdout
    path.write_bytes(whole)
    sums.write_bytes(listed)


def test_every_job_waits_for_the_one_that_it_takes_from() -> None:
    jobs = workflow()["jobs"]
    for name, job in jobs.items():
        needs = job.get("needs", [])
        for taken in re.findall(r"needs\.(\w+)\.", str(job["steps"])):
            assert taken in (needs if isinstance(needs, list) else [needs]), name
