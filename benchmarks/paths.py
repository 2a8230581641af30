"""Where inputs and artifacts lie, all of it ignored by git. Standard library only, like measure.py."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
ENVIRONMENTS = HERE / ".envs"
REQUIREMENTS = HERE / "requirements"

GGUF = CACHE / "smollm2.gguf"
SMOLLM2 = CACHE / "smollm2"
PERMUTED = CACHE / "smollm2-permuted"
LLAMA_1B = CACHE / "llama-1b"
GPT2 = CACHE / "gpt2-124m"
TINY = HERE.parent / "samples" / "tiny"
