"""transformers.js in Node: installed once into the user's cache, run as one process.

It fetches nothing afterwards: models are local folders, and remote ones are switched off.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

VERSION = "4.3.1"
SCRIPT = """
import { AutoModelForCausalLM, AutoTokenizer, Tensor, env } from '@huggingface/transformers';
const jobs = JSON.parse(process.argv[2]);
env.allowRemoteModels = false;
const results = {};
for (const { home, name, chat, ids, count } of jobs) {
    env.localModelPath = home + '/';
    try {
        const tokenizer = await AutoTokenizer.from_pretrained(name);
        const model = await AutoModelForCausalLM.from_pretrained(name, { device: 'cpu' });
        const prompt = chat
            ? tokenizer.apply_chat_template(chat, { add_generation_prompt: true, tokenize: true, return_tensor: false,
                                                    return_dict: false })
            : ids;
        const shape = [1, prompt.length];
        const tensor = (values) => new Tensor('int64', BigInt64Array.from(values.map(BigInt)), shape);
        const out = await model.generate({ input_ids: tensor(prompt), attention_mask: tensor(prompt.map(() => 1)),
                                           max_new_tokens: count, do_sample: false });
        results[name] = { prompt, tokens: out.tolist()[0].slice(prompt.length).map(Number) };
    } catch (error) {
        results[name] = { error: String(error) };
    }
}
console.log(JSON.stringify(results));
"""


@functools.cache
def node() -> Path:
    """A folder in which transformers.js is installed; skips the test where it cannot be."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "onnx-gpt" / f"transformers.js-{VERSION}"
    if not (folder / "ready").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", f"@huggingface/transformers@{VERSION}"]
        skip_cuda = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
        done = subprocess.run(
            command, cwd=folder, env=skip_cuda, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            pytest.skip(f"transformers.js cannot be installed: {done.stderr[-300:]}")
        (folder / "ready").touch()
    (folder / "generate.mjs").write_text(SCRIPT, "utf-8")
    return folder


def generate(jobs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Greedy tokens of several folders: for each ``home``, ``name``, ``count`` and a ``chat`` or token ``ids``.

    Gives ``prompt`` and ``tokens`` by name, or ``error``.
    """
    command = ["node", "generate.mjs", json.dumps(jobs)]
    done = subprocess.run(command, cwd=node(), capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    results: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results
