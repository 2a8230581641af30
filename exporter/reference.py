"""The PyTorch float32 model that bundles are compared with: transformers' own, or the user's module.

torch and transformers are imported here only, when a reference is asked for. Weights are streamed into the
model a piece at a time, so the cost is the model itself and nothing beside it.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from exporter.checkpoint import Checkpoint, ModuleSource
from exporter.errors import Exit, OnnxGptError, rejected
from exporter.families import describe, families, family_of
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
            self._copies: list[int] = []
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
                if not self._copies:
                    self.remember(np.zeros((1, 1), np.int64))
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
        """Keys and values ``[B, K, T, D]`` of each layer.

        transformers keeps each head once, or for every query head that reads it (Falcon): how often, the cache shows.
        """
        layers = cache.layers
        self._copies = [layer.keys.shape[1] // K for layer, K in zip(layers, self._kv_heads, strict=True)]
        return [
            (layer.keys[:, ::copies].float().numpy(), layer.values[:, ::copies].float().numpy())
            for layer, copies in zip(layers, self._copies, strict=True)
        ]

    def variants(self) -> Iterator[str]:
        """Make the model another that computes the same function, one after the other; after each it is itself again.

        ``float64``: products in double precision (transformers' norms and rotary angles stay in float32). ``eager``:
        attention by its definition instead of torch's fused kernel; only for a checkpoint of a class that takes that
        kernel at all (Gemma 2, which caps scores, does not), and the other one afterwards (Falcon does not).
        """
        torch = self._torch
        usual = torch.get_default_dtype()
        try:
            self.model.double()
            torch.set_default_dtype(torch.float64)  # of which XGLM makes the least number of a float64
            yield "float64"
        finally:
            torch.set_default_dtype(usual)
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

    Nothing is downloaded and no code of the checkpoint's is run: see `model_class`.

    Raises:
        OnnxGptError: ``reference-missing`` (exit 8) where torch or transformers is not installed, or does not know the
            model; ``architecture-unknown`` (exit 3); ``weights-mismatch`` (exit 4), listing all that does not fit.
    """
    checkpoint = ordinary(checkpoint)  # transformers knows no variants
    family = family_of(checkpoint)
    torch, transformers = _import("torch"), _import("transformers")
    kind, config_class = model_class(family.__name__.rpartition(".")[2])
    config = config_class.from_dict(dict(checkpoint.config) | {"dtype": "float32"})
    config._attn_implementation = FUSED if kind._supports_sdpa else EAGER
    with importlib.import_module("transformers.initialization").no_init_weights():
        model = kind(config)
    model.tie_weights()
    model.generation_config = transformers.GenerationConfig()  # no end token: texts are compared by length
    weights, tensors = checkpoint.weights, named_tensors(checkpoint, model)
    with torch.no_grad():
        findings = [
            *_load(tensors, weights, torch),
            *_unused(tensors, weights, getattr(family, "IGNORED", ())),
        ]
    if findings:
        raise rejected(
            "weights-mismatch",
            f"the weights do not fit transformers' {checkpoint.architecture} ({len(findings)} findings)",
            "check that config.json and the weight files belong together and are complete",
            tuple(findings),
        )
    return model.eval()


def model_class(family: str) -> tuple[Any, Any]:
    """transformers' class of a family's models and that of their configurations.

    It is the one that transformers itself has under the architecture's name, and where it has none, the one by which it
    runs the family's model type: InternLM 3 by Llama's.

    Raises:
        OnnxGptError: ``reference-missing``.
    """
    transformers = _import("transformers")
    own = getattr(transformers, families()[family].ARCHITECTURES[0], None)
    if own is not None:
        return own, own.config_class
    if family not in transformers.CONFIG_MAPPING:
        raise OnnxGptError(
            "reference-missing",
            f"{_version('transformers')} does not know the model type {family}",
            "pip install --upgrade transformers",
            exit=Exit.ENVIRONMENT,
        )
    config_class = transformers.CONFIG_MAPPING[family]
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config_class], config_class


def named_tensors(checkpoint: Checkpoint, model: Any) -> dict[str, Any]:
    """The tensors of transformers' model of a checkpoint, by the names that its family has for them.

    transformers 5 came to call every head ``lm_head``, and still writes GPT-NeoX's as ``embed_out``. Where the model is
    another family's, the names are those of the same roles.
    """
    decoder, own = describe(checkpoint), type(model).__name__
    tensors: dict[str, Any] = model.state_dict(keep_vars=True)
    names: dict[str, str] = {}
    if own != family_of(checkpoint).ARCHITECTURES[0]:
        config = model.config.to_dict() | {"architectures": [own], "model_type": ""}
        theirs = dict(describe(Checkpoint(checkpoint.uri, config, {})).parts())
        names = {theirs[role].name: part.name for role, part in decoder.parts()}
    if not decoder.tied:
        head = model.get_output_embeddings().weight
        names |= {name: decoder.head.weight.name for name, tensor in tensors.items() if tensor is head}
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def _load(tensors: Mapping[str, Any], weights: Mapping[str, Weight], torch: ModuleType) -> Iterator[str]:
    """Fill the model's tensors; yields what is missing, mis-shaped or at odds with a tensor it is tied to."""
    filled: dict[int, str] = {}
    for name, tensor in tensors.items():
        weight, twin = weights.get(name), filled.get(tensor.data_ptr())
        if weight is None:
            if twin is None:
                yield f"missing: {name} {list(tensor.shape)}"
            continue
        if weight.shape != tuple(tensor.shape):
            yield f"shape: {name} is {list(weight.shape)}, transformers' is {list(tensor.shape)}"
            continue
        held = tensor if tensor.shape else tensor[None]
        for start, stop in weight.pieces():
            rows = torch.from_numpy(weight.rows(start, stop))
            if twin is None:
                held[start:stop].copy_(rows)
            elif not torch.equal(held[start:stop], rows):
                yield f"tied: {name} differs from {twin}, and the configuration says that they are one"
                break
        filled.setdefault(tensor.data_ptr(), name)


def _unused(
    tensors: Mapping[str, Any], weights: Mapping[str, Weight], ignored: tuple[str, ...]
) -> Iterator[str]:
    for name, weight in weights.items():
        if name not in tensors and not any(re.fullmatch(pattern, name) for pattern in ignored):
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
