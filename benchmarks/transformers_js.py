"""transformers.js in Node and in headless Chromium, through the sample page's own server (samples/web).

Packages of the pinned versions (samples/web/package.json) are installed once into the user's cache with npm.
`benchmarks.web`, `benchmarks.targets` and the tests open bundles with it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.environment import NotHereError
from benchmarks.measure import ROOT, say

WEB = ROOT / "samples" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
INSTALLING = 300
"""Seconds that npm may take."""

Call = Mapping[str, Any]
"""What samples/web/headless.mjs is asked for."""


@functools.cache
def modules() -> Path:
    """``node_modules`` with transformers.js and Playwright.

    Raises:
        NotHereError: there is no Node or npm, or npm cannot install the packages.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise NotHereError("Node and npm are not installed")
    package = (WEB / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onnx-gpt"
    folder = cache / f"web-{hashlib.sha256(package).hexdigest()[:12]}"
    if not (folder / ".ready").exists():
        say(f"npm installs transformers.js in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_bytes(package)
        # onnxruntime-node's install script fetches CUDA otherwise; its CPU library is in the package.
        environment = os.environ | {"ONNXRUNTIME_NODE_INSTALL": "skip"}
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=INSTALLING
        )
        if done.returncode != 0:
            raise NotHereError(f"npm cannot install transformers.js: {done.stderr.strip()[-200:]}")
        (folder / ".ready").touch()
    return folder / "node_modules"


@functools.cache
def chromium() -> str:
    """Path of a Chromium.

    Raises:
        NotHereError: there is none.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise NotHereError(f"no Chromium is installed (none of {', '.join(BROWSERS)})")
    return found


def require_browser() -> None:
    """End the program with what is missing, where a browser cannot be driven."""
    try:
        modules()
        chromium()
    except NotHereError as error:
        raise SystemExit(str(error)) from error


def in_node(bundle: Path, calls: Sequence[Call], seconds: float | None = None) -> list[dict[str, Any]]:
    """What transformers.js makes of each call in Node.

    Args:
        seconds: that it may take.

    Raises:
        NotHereError: see `modules`.
        RuntimeError: it failed, with the end of what it said.
    """
    named = [{"folder": bundle.name, **call} for call in calls]
    return _asked({"runtime": "node", "root": f"{bundle.parent}/", "calls": named}, seconds)


def in_chromium(
    folders: Mapping[str, Path], calls: Sequence[Call], seconds: float | None = None
) -> list[dict[str, Any]]:
    """The same in headless Chromium, on the sample's page.

    Args:
        folders: bundles by the names under which they are served; a call's ``folder`` is one, ``bundle`` by default.

    Raises:
        NotHereError: see `modules` and `chromium`.
        RuntimeError: it failed, with the end of what it said.
    """
    executable = chromium()
    with _serving(folders) as url:
        request = {"runtime": "chromium", "url": url, "executable": executable, "calls": list(calls)}
        return _asked(request, seconds)


@contextmanager
def _serving(folders: Mapping[str, Path]) -> Iterator[str]:
    """The sample's server, with bundles."""
    made: Any = runpy.run_path(str(WEB / "serve.py"))["server"]
    server = made({**folders, "modules": modules()})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _asked(request: Mapping[str, Any], seconds: float | None) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["node", str(WEB / "headless.mjs"), str(modules())],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers
