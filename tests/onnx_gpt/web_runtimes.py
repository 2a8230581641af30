"""What web bundles run on, in tests and in `benchmarks.targets`: transformers.js in Node and in headless Chromium.

Packages of the pinned versions (samples/web/package.json) are installed once into the user's cache with npm. Where
npm, or a Chromium, is not there, tests are skipped and say so; `.ci/run` puts both there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WEB = ROOT / "samples" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 300


@functools.cache
def modules() -> Path:
    """``node_modules`` with transformers.js and Playwright."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node and npm are not installed")
    package = (WEB / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onnx-gpt"
    folder = cache / f"web-{hashlib.sha256(package).hexdigest()[:12]}"
    if not (folder / ".ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_bytes(package)
        # onnxruntime-node's install script fetches CUDA otherwise; its CPU library is in the package.
        environment = os.environ | {"ONNXRUNTIME_NODE_INSTALL": "skip"}
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        if done.returncode != 0:
            pytest.skip(f"npm cannot install transformers.js: {done.stderr.strip()[-200:]}")
        (folder / ".ready").touch()
    return folder / "node_modules"


@functools.cache
def chromium() -> str:
    """Path of a Chromium."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no Chromium is installed (none of {', '.join(BROWSERS)})")
    return found


def in_node(bundle: Path, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What transformers.js makes of each call (samples/web/headless.mjs) in Node.

    Raises:
        RuntimeError: it failed, with the end of what it said.
    """
    named = [{"folder": bundle.name, **call} for call in calls]
    return _run({"runtime": "node", "root": f"{bundle.parent}/", "calls": named})


def in_chromium(bundle: Path, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same in headless Chromium, on the sample's own page and server."""
    browser = chromium()
    with serving(bundle) as url:
        return _run({"runtime": "chromium", "url": url, "executable": browser, "calls": list(calls)})


@contextmanager
def serving(bundle: Path) -> Iterator[str]:
    """The sample's server, with a bundle."""
    source: dict[str, Any] = {"__file__": str(WEB / "serve.py"), "__name__": "serve"}
    exec(compile((WEB / "serve.py").read_text("utf-8"), "serve.py", "exec"), source)
    server = source["server"]({"bundle": bundle, "modules": modules()})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _run(request: dict[str, Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["node", str(WEB / "headless.mjs"), str(modules())],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers
