"""The empty cache that Optimum makes: for some model types it reads another number of kv heads, or another head dim.

onnxruntime then refuses the first step, where it says that a dim of the cache is not as expected.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx_gpt.bundle.targets.optimum import empty_cache
from onnx_gpt.linting.finding import Finding
from onnx_gpt.linting.sizes import sizes_of
from onnx_gpt.linting.subject import Subject

TARGETS = ("optimum",)


def check(subject: Subject) -> Iterator[Finding]:
    kind, heads, hidden_size = (
        subject.config.get("model_type"),
        subject.size("heads"),
        subject.size("hidden_size"),
    )
    if not isinstance(kind, str) or heads is None or hidden_size is None:
        return
    for graph in subject.graphs:
        sizes = sizes_of(graph)
        kv_heads, head_dim = sizes.get("kv_heads"), sizes.get("head_dim")
        if kv_heads is None or head_dim is None:
            continue
        made = empty_cache(kind, heads=heads, kv_heads=kv_heads, head_dim=head_dim, hidden_size=hidden_size)
        if made != (kv_heads, head_dim):
            yield Finding(
                "cache-misread",
                "error",
                f"{graph.name}: cache",
                f"it has {kv_heads} kv heads of {head_dim}; for {kind}, {subject.expected.runtime} makes an empty "
                f"cache of {made[0]} of {made[1]}, whatever config.json says",
                "run it with onnxruntime itself (--target ort)",
            )
