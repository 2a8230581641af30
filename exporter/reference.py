"""The PyTorch float32 model that bundles are compared with: transformers' own, or the user's module.

torch and transformers are imported here only, when a reference is asked for. Weights are streamed into the
model a piece at a time, so the cost is the model itself and nothing beside it.
"""

from __future__ import annotations

import functools
import importlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from exporter.checkpoint import Checkpoint, ModuleSource
from exporter.errors import Exit, OnnxGptError, rejected
from exporter.families import describe, family_of
from exporter.sources.module import FAILURES, failed, instantiate, logits_in, quiet_stdout
from exporter.weights import Weight
from exporter.writing import ordinary

FUSED, EAGER = "sdpa", "eager"
"""transformers' names of attention by torch's kernel, and by its definition."""


class Reference:
    """Logits and greedy text of a source, computed by PyTorch in float32 on the CPU.

    Args:
        source: a checkpoint, a module's source, or the ``torch.nn.Module`` itself, which maps tokens
            ``[B, S]`` to logits ``[B, S, V]``.

    Raises:
        OnnxGptError: see `reference_model`; ``reference-missing`` (exit 8) where torch is not installed.
    """

    def __init__(self, source: Checkpoint | ModuleSource | Any) -> None:
        self._torch = _import("torch")
        self._cached = isinstance(source, Checkpoint)
        if isinstance(source, Checkpoint):
            self.model = reference_model(source)
            self._kv_heads = [layer.attention.kv_heads for layer in describe(ordinary(source)).layers]
            self.name = f"{_version('transformers')} on {_version('torch')}, float32"
        else:
            self.model = instantiate(source) if isinstance(source, ModuleSource) else source.eval()
            self.name = f"{type(self.model).__name__} on {_version('torch')}"

    def logits(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Logits of a whole sequence.

        Args:
            tokens: int64 ``[B, S]``.
            mask: int64 ``[B, S]``, 0 where a token is padding; positions are counted over the others, as
                transformers' ``generate`` counts them. Only for a checkpoint.

        Returns:
            float32 ``[B, S, V]``; arbitrary where the mask is 0.
        """
        torch = self._torch
        with torch.inference_mode():
            ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64))
            if not self._cached:
                out = self._of_module(ids)
            elif mask is None:
                out = self.model(input_ids=ids, use_cache=False).logits
            else:
                positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
                out = self.model(
                    input_ids=ids,
                    attention_mask=torch.from_numpy(np.ascontiguousarray(mask, np.int64)),
                    position_ids=torch.from_numpy(positions),
                    use_cache=False,
                ).logits
            logits: np.ndarray = out.float().numpy()
        return logits

    def greedy(self, tokens: np.ndarray, count: int) -> list[int]:
        """The likeliest ``count`` tokens after ``tokens`` (int64 ``[S]``), each given those before."""
        if not self._cached:
            return self._greedy_uncached(tokens, count)
        torch, transformers = self._torch, _import("transformers")
        ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64))[None]
        settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0)
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return [int(token) for token in out[0, ids.shape[1] :]]

    def after(
        self, tokens: np.ndarray, past: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Logits of tokens that follow others, of which keys and values are given. Only for a checkpoint.

        Args:
            tokens: int64 ``[B, S]``.
            past: keys (after their rotation) and values of each layer, float32 ``[B, K, P, D]``; P may be 0. A
                variant's K are its own: the heads that it lacks are zeros here.

        Returns:
            float32 logits ``[B, S, V]``, and the keys and values after these tokens as the model keeps them: a layer
            with a window may have forgotten the oldest.
        """
        torch, cache_utils = self._torch, _import("transformers.cache_utils")
        cache = cache_utils.DynamicCache(config=self.model.config)
        with torch.inference_mode():
            if past[0][0].shape[2]:
                for i, pair in enumerate(past):
                    heads, copies = self._kv_heads[i], self._copies[i]
                    keys, values = (torch.from_numpy(_with_heads(side, heads, copies)) for side in pair)
                    cache.update(keys.to(self.model.dtype), values.to(self.model.dtype), i)
            ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # later 5.x versions rename past_key_values
                logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            own = [keys.shape[1] for keys, _ in past]
            kept = [
                (keys[:, :K], values[:, :K]) for (keys, values), K in zip(self._kept(cache), own, strict=True)
            ]
        return logits.float().numpy(), kept

    def remember(self, tokens: np.ndarray) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Logits of a whole sequence and the keys and values of all of its tokens, whatever a layer's window is.

        Only for a checkpoint; arrays as those of `after`, which goes on from them.
        """
        torch, cache_utils = self._torch, _import("transformers.cache_utils")
        cache = cache_utils.DynamicCache()  # told of no configuration, it forgets nothing
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64))
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return logits.float().numpy(), self._kept(cache)

    def _kept(self, cache: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """Keys and values ``[B, K, T, D]`` of each layer."""
        found = zip(cache.layers, self._copies, strict=True)
        return [
            (layer.keys[:, ::copies].float().numpy(), layer.values[:, ::copies].float().numpy())
            for layer, copies in found
        ]

    @functools.cached_property
    def _copies(self) -> list[int]:
        """How often transformers keeps each key/value head: once, or for every query head that reads it (Falcon)."""
        cache = _import("transformers.cache_utils").DynamicCache()
        with self._torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            token = self._torch.zeros((1, 1), dtype=self._torch.int64)
            self.model(input_ids=token, past_key_values=cache, use_cache=True)
        return [layer.keys.shape[1] // K for layer, K in zip(cache.layers, self._kv_heads, strict=True)]

    def variants(self) -> Iterator[str]:
        """Make the model another that computes the same function, one after the other; after each it is itself again.

        ``float64``: products in double precision (transformers' norms and rotary angles stay in float32). ``eager``:
        attention by its definition instead of torch's fused kernel; only for a checkpoint of a class that takes that
        kernel at all (Gemma 2, which caps scores, does not), and the other one afterwards (Falcon does not).
        """
        try:
            self.model.double()
            yield "float64"
        finally:
            self.model.float()
        if not self._cached or self.model.config._attn_implementation == EAGER:
            return
        if not self.model._can_set_attn_implementation():
            return
        try:
            self.model.set_attn_implementation(EAGER)
            yield "eager attention"
        finally:
            self.model.set_attn_implementation(FUSED)

    def _of_module(self, tokens: Any) -> Any:
        """Logits that a user's module gives; its own errors are about these tokens.

        Raises:
            OnnxGptError: ``module-unusable``.
        """
        try:
            with quiet_stdout():
                return logits_in(self.model(tokens))
        except FAILURES as error:
            remedy = "run it on such tokens yourself; a context that is shorter is told by --context-length"
            raise failed(
                f"{type(self.model).__name__} on tokens {list(tokens.shape)}", error, remedy
            ) from error

    def _greedy_uncached(self, tokens: np.ndarray, count: int) -> list[int]:
        sequence = [int(token) for token in tokens]
        for _ in range(count):
            sequence.append(int(self.logits(np.array([sequence], np.int64))[0, -1].argmax()))
        return sequence[len(tokens) :]


def _with_heads(side: np.ndarray, heads: int, copies: int) -> np.ndarray:
    """Keys or values ``[B, K, P, D]`` with zeros for the heads that are missing, and each head so often."""
    whole = np.pad(np.ascontiguousarray(side), ((0, 0), (0, heads - side.shape[1]), (0, 0), (0, 0)))
    return np.repeat(whole, copies, axis=1)


def reference_model(checkpoint: Checkpoint) -> Any:
    """transformers' model of a checkpoint, in float32, for inference.

    Nothing is downloaded and no code of the checkpoint's is run: the class is the one that transformers
    itself has under the architecture's name.

    Raises:
        OnnxGptError: ``reference-missing`` (exit 8) where torch or transformers is not installed;
            ``architecture-unknown`` (exit 3); ``weights-mismatch`` (exit 4), listing all that does not fit.
    """
    checkpoint = ordinary(checkpoint)  # transformers knows no variants
    decoder, family = describe(checkpoint), family_of(checkpoint)
    torch, transformers = _import("torch"), _import("transformers")
    model_class = getattr(transformers, checkpoint.architecture)
    config = model_class.config_class.from_dict(dict(checkpoint.config) | {"dtype": "float32"})
    config._attn_implementation = FUSED if model_class._supports_sdpa else EAGER
    with importlib.import_module("transformers.initialization").no_init_weights():
        model = model_class(config)
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig()  # no end token: texts are compared by length
    weights = dict(checkpoint.weights)
    if not decoder.tied and decoder.head.weight.name in weights:
        weights[_head_name(model)] = weights.pop(decoder.head.weight.name)
    with torch.no_grad():
        findings = [*_load(model, weights, torch), *_unused(model, weights, getattr(family, "IGNORED", ()))]
    if findings:
        raise rejected(
            "weights-mismatch",
            f"the weights do not fit transformers' {checkpoint.architecture} ({len(findings)} findings)",
            "check that config.json and the weight files belong together and are complete",
            tuple(findings),
        )
    return model.eval()


def _head_name(model: Any) -> str:
    """transformers 5 came to call every head ``lm_head``, and still writes GPT-NeoX's as ``embed_out``."""
    head = model.get_output_embeddings().weight
    return next(str(name) for name, tensor in model.state_dict(keep_vars=True).items() if tensor is head)


def _load(model: Any, weights: Mapping[str, Weight], torch: ModuleType) -> Iterator[str]:
    """Fill the model's tensors; yields what is missing, mis-shaped or at odds with a tensor it is tied to."""
    filled: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        weight, twin = weights.get(name), filled.get(tensor.data_ptr())
        if weight is None:
            if twin is None:
                yield f"missing: {name} {list(tensor.shape)}"
            continue
        if weight.shape != tuple(tensor.shape):
            yield f"shape: {name} is {list(weight.shape)}, transformers' is {list(tensor.shape)}"
            continue
        for start, stop in weight.pieces():
            rows = torch.from_numpy(weight.rows(start, stop))
            if twin is None:
                tensor[start:stop].copy_(rows)
            elif not torch.equal(tensor[start:stop], rows):
                yield f"tied: {name} differs from {twin}, and the configuration says that they are one"
                break
        filled.setdefault(tensor.data_ptr(), name)


def _unused(model: Any, weights: Mapping[str, Weight], ignored: tuple[str, ...]) -> Iterator[str]:
    known = model.state_dict().keys()
    for name, weight in weights.items():
        if name not in known and not any(re.fullmatch(pattern, name) for pattern in ignored):
            yield f"unused: {name} {list(weight.shape)}"


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OnnxGptError(
            "reference-missing",
            f"the PyTorch reference needs {name}, which cannot be imported: {error}",
            "pip install 'onnx-gpt[reference]'",
            exit=Exit.ENVIRONMENT,
        ) from error


def _version(name: str) -> str:
    return f"{name} {_import(name).__version__}"
