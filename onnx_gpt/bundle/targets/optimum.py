"""Optimum: a Hugging Face folder that ``ORTModelForCausalLM`` loads and ``generate`` runs as any model.

It is onnxruntime's own graph but for one thing: ``generate`` pads batches on the left, so attention takes a bias.

Optimum 0.1 makes the empty cache by config.json, of which it reads the number of kv heads and the head dim for some
model types only (optimum/onnxruntime/modeling_decoder.py, ``ORTModelForCausalLM.__init__``). For the others it takes
one kv head for each head, and ``hidden_size // num_attention_heads``: where the graph has other ones, it cannot run.
"""

from __future__ import annotations

from exporter.errors import unsupported
from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target

PASSES = "fold, attention{padding=any}, qkv, keep, norm, mlp, head, outline, clean"

CPU = Runtime("Optimum 0.1 on onnxruntime", caches=("float",))

READS_HEAD_DIM = frozenset({"gemma", "gemma3", "gemma3_text", "gpt_oss", "nemotron", "deepseek_v3"})
READS_KV_HEADS = READS_HEAD_DIM | frozenset(
    """
    arcee cohere falcon glm gpt_bigcode granite helium llama mistral qwen2 qwen3 qwen3_moe smollm3 stablelm
    """.split()  # noqa: SIM905 (a table)
)

NEWER = frozenset({"cwm", "exaone", "hyperclovax", "internlm3", "iquestcoder", "jais2", "ministral3"})
"""Families that transformers 4.57, the last one that Optimum 0.1 takes, does not know."""


def empty_cache(kind: str, *, heads: int, kv_heads: int, head_dim: int, hidden_size: int) -> tuple[int, int]:
    """Kv heads and head dim of the empty cache that Optimum makes for a model of these sizes, by its ``model_type``."""
    return (
        kv_heads if kind in READS_KV_HEADS else heads,
        head_dim if kind in READS_HEAD_DIM else hidden_size // heads,
    )


def files(facts: BundleFacts) -> dict[str, bytes]:
    """Small files.

    Raises:
        OnnxGptError: ``target-unsupported`` (exit 3) where Optimum would make a cache of another shape, or does not
            know the model.
    """
    kind, decoder = facts.config.get("model_type"), facts.decoder
    if kind in NEWER:
        raise unsupported(
            "target-unsupported",
            f"Optimum 0.1 runs with transformers 4.57 and older, which know no {kind}",
            "use --target ort",
        )
    if decoder is not None and isinstance(kind, str):
        made = empty_cache(
            kind,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            hidden_size=decoder.hidden_size,
        )
        if made != (decoder.kv_heads, decoder.head_dim):
            raise unsupported(
                "target-unsupported",
                f"for {kind} Optimum 0.1 makes a cache of {made[0]} kv heads of {made[1]}, and this model's has "
                f"{decoder.kv_heads} of {decoder.head_dim}",
                "use --target ort",
            )
    return facts.common_files()


TARGET = Target(
    name="optimum",
    models=(ModelFile("model", "model.onnx", PASSES, CPU),),
    files=files,
)
