"""config.json out of the graph, and of genai_config.json where there is one; sizes that the graph has."""

from __future__ import annotations

from typing import Any

from onnx_gpt.bundle.decoder_facts import DecoderFacts
from onnx_gpt.bundle.targets.web import LAYER_KEYS, PLAIN
from onnx_gpt.linting.checks.web import CONFIG, DTYPES, WASM_DEFAULT
from onnx_gpt.linting.draft import Draft
from onnx_gpt.linting.sizes import sizes_of
from onnx_gpt.linting.subject import ALIASES, size_of, table

OF = "document"
CODES = (
    "file-absent",
    "config-graph-mismatch",
    "model-type-unknown",
    "config-key-absent",
    "external-data-unlisted",
    "external-data-name",
    "external-data-large",
    "model-misplaced",
    "model-default-absent",
)
NAME = "config.json"


def repair(draft: Draft) -> Draft:
    expected = draft.subject.expected
    if not draft.graphs or NAME not in (expected.config, *expected.needs, *expected.wants):
        return draft
    if NAME not in draft.documents:
        draft = draft.write(NAME, _made(draft), "made of the graph")
    draft = _sizes(draft)
    return _web(draft) if draft.subject.target == "web" else draft


def facts_of(draft: Draft) -> DecoderFacts | None:
    """Sizes of the first graph, and where it leaves them open those that are stated; None where one is neither."""
    config, genai = (
        draft.documents.get(NAME, {}),
        table(draft.documents.get("genai_config.json", {}), "model"),
    )
    real = sizes_of(draft.graphs[0])
    sizes = {which: real.get(which) or draft.subject.size(which) for which in ALIASES}
    known = {which: size for which, size in sizes.items() if size is not None}
    if known.keys() != ALIASES.keys():
        return None
    lengths = (config.get("max_position_embeddings"), config.get("n_positions"), genai.get("context_length"))
    return DecoderFacts(
        **known, context_length=next((value for value in lengths if isinstance(value, int)), None)
    )


def _made(draft: Draft) -> dict[str, Any]:
    genai = table(draft.documents.get("genai_config.json", {}), "model")
    facts = facts_of(draft)
    kind = genai.get("type")
    config: dict[str, Any] = {"model_type": kind if kind in LAYER_KEYS else PLAIN}
    if facts is not None:
        config |= {
            "num_hidden_layers": facts.layers,
            "num_attention_heads": facts.heads,
            "num_key_value_heads": facts.kv_heads,
            "head_dim": facts.head_dim,
            "hidden_size": facts.hidden_size,
            "vocab_size": facts.vocab_size,
        }
        config |= {"max_position_embeddings": facts.context_length} if facts.context_length else {}
    ids = {key: genai[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in genai}
    return config | ids


def _sizes(draft: Draft) -> Draft:
    """Keys that say another size than the graph has."""
    config, changed = dict(draft.documents[NAME]), []
    for which, real in sizes_of(draft.graphs[0]).items():
        keys = [key for key in ALIASES[which] if key in config] or [ALIASES[which][0]]
        stated = size_of(config, which)
        if stated is not None and stated != real:
            changed.append(f"{keys[0]} is {real}, and was {config.get(keys[0], f'taken to be {stated}')}")
            config[keys[0]] = real
    return draft.write(NAME, config, "; ".join(changed)) if changed else draft


def _web(draft: Draft) -> Draft:
    """The keys that transformers.js reads: a type whose cache it knows, its layers, and the files of weights."""
    config = dict(draft.documents[NAME])
    changed = []
    if config.get("model_type") is None:
        config["model_type"] = PLAIN
        changed.append(f"model_type is {PLAIN}, whose cache is plain")
    key, facts = LAYER_KEYS.get(str(config["model_type"])), facts_of(draft)
    if key is not None and not isinstance(config.get(key), int) and facts is not None:
        config[key] = facts.layers
        changed.append(f"{key} is {facts.layers}")
    names = {path.rpartition("/")[2]: count for path, count in draft.data_files.items()}
    listed = {name: count for name, count in names.items() if count}
    own = dict(table(config, CONFIG))
    if len(names) == 1 and WASM_DEFAULT not in names and not own.get("dtype"):
        own["dtype"] = DTYPES[next(iter(names))]
        config[CONFIG] = own
        changed.append(f"{CONFIG}.dtype is {own['dtype']}, that of the only model")
    if listed and own.get("use_external_data_format") != listed:
        config[CONFIG] = own | {"use_external_data_format": listed}
        changed.append(f"{CONFIG}.use_external_data_format lists {len(listed)} models")
    return draft.write(NAME, config, "; ".join(changed)) if changed else draft
