"""Leaves out the tokens that a corpus does not use: rows of the embedding and the head, and their entries of the
tokenizer.

Every text of the corpus is cut into the same tokens as before, under new numbers in the old order, and the logits
of kept tokens are what they were. Other texts are cut into the tokens that there are. For that, what is kept is
closed under how a tokenizer builds its tokens:

BPE: both sides of every merge that gives a kept token, and all single characters or bytes that it knows; merges
whose sides or result are gone go, too. On the corpus, no merge fired whose result is gone. Unigram, WordLevel,
WordPiece: the pieces used, and for Unigram those of one character or byte.

Added tokens (special ones) stay.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from calibration.pruning.model import Described
from exporter.errors import rejected, unsupported
from exporter.weight_expressions import Permuted

BYTE = 6
"""Characters of a piece such as <0x0A>, which stands for a byte."""

ID_KEYS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"),
)
"""Keys of ``config.json`` and ``generation_config.json`` that hold token ids."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """Token ids that stay, rising: the new number of a token is its place among them."""

    ids: np.ndarray

    def new(self, old: int) -> int:
        """The new number of a kept token.

        Raises:
            KeyError: where it is gone.
        """
        place = int(np.searchsorted(self.ids, old))
        if place == len(self.ids) or self.ids[place] != old:
            raise KeyError(old)
        return place


def kept_tokens(
    tokenizer_json: bytes, config: Mapping[str, Any], used: Iterable[int], vocab_size: int, multiple: int
) -> Kept:
    """The tokens that a corpus uses and those that they need.

    Args:
        config: ``config.json``, whose special tokens stay.
        used: token ids of the corpus.
        multiple: of which the number of kept tokens is made one, by the unused tokens with the lowest ids.

    Raises:
        OnnxGptError: ``tokenizer-invalid``; ``vocabulary-unknown`` (exit 3) for a kind of tokenizer without rules
            here.
    """
    document = _parsed(tokenizer_json)
    tokens = _tokens_of(document)
    special = {int(token["id"]) for token in document.get("added_tokens", ())}
    for key in ID_KEYS:
        special |= set(_flat(config.get(key)))
    kept = special | set(map(int, used)) | _always(document, tokens)
    parents = _parents(document, tokens)
    kept |= _closure(kept, parents)
    for token in range(vocab_size):
        if len(kept) % multiple == 0 or len(kept) >= vocab_size:
            break
        if token not in kept:
            more = {token} | _closure({token}, parents)
            if len(kept | more) <= -(-len(kept) // multiple) * multiple:
                kept |= more
    outside = [token for token in kept if not 0 <= token < vocab_size]
    if outside:
        raise rejected(
            "tokenizer-invalid",
            f"token {outside[0]} has no row in the model",
            "use the model's own tokenizer",
        )
    return Kept(np.array(sorted(kept), np.int64))


def _parsed(tokenizer_json: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(tokenizer_json)
        kind = document["model"].get("type", "BPE")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise rejected("tokenizer-invalid", f"tokenizer.json: {error}", "restore the file") from error
    if kind not in ("BPE", "Unigram", "WordLevel", "WordPiece"):
        raise unsupported(
            "vocabulary-unknown",
            f"a tokenizer of type {kind} has no rules by which tokens could be left out",
            "drop vocab from --structured",
        )
    return document


def _tokens_of(document: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of the model's own vocabulary and their ids."""
    vocab = document["model"]["vocab"]
    if isinstance(vocab, list):
        return {piece: i for i, (piece, _) in enumerate(vocab)}
    return {str(token): int(i) for token, i in vocab.items()}


def _always(document: Mapping[str, Any], tokens: Mapping[str, int]) -> set[int]:
    """Single characters and bytes, without which some text could not be written, and the token for the unknown."""
    model = document["model"]
    single = {
        i for token, i in tokens.items() if len(token) == 1 or (len(token) == BYTE and token[:3] == "<0x")
    }
    unknown = (
        model.get("unk_id") if model.get("type") == "Unigram" else tokens.get(str(model.get("unk_token")))
    )
    return single | ({int(unknown)} if unknown is not None else set())


def _parents(document: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[int, set[int]]:
    """The tokens out of which a BPE makes each, by any of its merges."""
    parents: dict[int, set[int]] = {}
    for left, right in map(_pair, document["model"].get("merges", ())):
        made = tokens.get(left + right)
        if made is not None and left in tokens and right in tokens:
            parents.setdefault(made, set()).update((tokens[left], tokens[right]))
    return parents


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _closure(kept: Iterable[int], parents: Mapping[int, set[int]]) -> set[int]:
    found: set[int] = set()
    todo = list(kept)
    while todo:
        for parent in parents.get(todo.pop(), ()):
            if parent not in found:
                found.add(parent)
                todo.append(parent)
    return found


def with_vocabulary(model: Described, kept: Kept) -> Described:
    """The decoder with the kept tokens' rows of its embedding and its head."""
    names = ("embedding.weight", "head.weight", "head.bias")
    weights = dict(model.weights)
    weights |= {name: Permuted(weights[name], kept.ids) for name in names if name in weights}
    size = len(kept.ids)
    decoder = model.decoder
    embedding = dataclasses.replace(decoder.embedding, shape=(size, decoder.hidden_size))
    head = decoder.head
    weight = (
        embedding if decoder.tied else dataclasses.replace(head.weight, shape=(size, decoder.hidden_size))
    )
    bias = None if head.bias is None else dataclasses.replace(head.bias, shape=(size,))
    smaller = dataclasses.replace(
        decoder,
        vocab_size=size,
        embedding=embedding,
        head=dataclasses.replace(head, weight=weight, bias=bias),
    )
    return Described(smaller, weights)


def remapped(files: Mapping[str, bytes], kept: Kept) -> dict[str, bytes]:
    """The tokenizer's and the generation's files under the new numbers; others as they are."""
    changed = dict(files)
    changed["tokenizer.json"] = _written(_remapped_tokenizer(_parsed(files["tokenizer.json"]), kept))
    if "tokenizer_config.json" in files:
        config = json.loads(files["tokenizer_config.json"])
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                str(kept.new(int(i))): token for i, token in config["added_tokens_decoder"].items()
            }
        changed["tokenizer_config.json"] = _written(config)
    if "generation_config.json" in files:
        changed["generation_config.json"] = _written(
            remapped_ids(json.loads(files["generation_config.json"]), kept)
        )
    return changed


def remapped_ids(config: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """A configuration whose token ids are the new ones."""
    return {key: _map(value, kept) if key in ID_KEYS else value for key, value in config.items()}


def _remapped_tokenizer(document: dict[str, Any], kept: Kept) -> dict[str, Any]:
    model, tokens = document["model"], _tokens_of(document)
    alive = set(kept.ids.tolist())
    if isinstance(model["vocab"], list):
        model["vocab"] = [piece for i, piece in enumerate(model["vocab"]) if i in alive]
        if model.get("unk_id") is not None:
            model["unk_id"] = kept.new(model["unk_id"])
    else:
        model["vocab"] = {token: kept.new(i) for token, i in tokens.items() if i in alive}
    if "merges" in model:
        left = model["vocab"].keys()
        model["merges"] = [
            merge for merge in model["merges"] if {*_pair(merge), "".join(_pair(merge))} <= left
        ]
    for token in document.get("added_tokens", ()):
        token["id"] = kept.new(token["id"])
    if document.get("post_processor") is not None:
        _remap_processor(document["post_processor"], kept)
    return document


def _remap_processor(processor: dict[str, Any], kept: Kept) -> None:
    """Ids that a post-processor puts around a text."""
    for inner in processor.get("processors", ()):
        _remap_processor(inner, kept)
    special = processor.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else ():
        token["ids"] = [kept.new(i) for i in token["ids"]]
    for key in ("sep", "cls"):
        if isinstance(processor.get(key), list):
            processor[key] = [processor[key][0], kept.new(processor[key][1])]


def _map(value: Any, kept: Kept) -> Any:
    if isinstance(value, list):
        return [_map(item, kept) for item in value]
    return kept.new(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else value


def _flat(value: Any) -> list[int]:
    if isinstance(value, list):
        return [i for item in value for i in _flat(item)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else []


def _written(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
