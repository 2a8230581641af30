"""The vocabulary in which a family describes itself: a decoder made of parts, each part naming its tensors.

A description holds no weights and no graph. From it come the graph (`exporter.build`), the exact list of
tensors that a checkpoint must have (`exporter.match`), and the roles by which schemes and reports speak of a
weight (``layers.3.ffn.down``).

Dims: B batch, S query, T total, H heads, K kv heads, D head dim, E hidden, F ffn, V vocab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]
"""``relu2`` is relu(x)² (So et al. 2021, Primer); ``xielu`` has learned numbers, see `Xielu`."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A learned tensor, or a piece of one.

    Attributes:
        name: the tensor's name in a Hugging Face checkpoint.
        shape: as used, ``[out, in]`` for a linear map.
        stored: as stored, where that differs.
        transposed: stored ``[in, out]``; `rows` speak of the transposed (used) orientation.
        rows: ranges of rows of the stored tensor that make up this part; None for all.
        plus: constant to add (Gemma stores γ and uses 1 + γ).
        times: constant to multiply by (Granite makes what blocks add to the residual stream smaller).
    """

    name: str
    shape: tuple[int, ...]
    stored: tuple[int, ...] | None = None
    transposed: bool = False
    rows: tuple[tuple[int, int], ...] | None = None
    plus: float = 0.0
    times: float = 1.0

    @property
    def stored_shape(self) -> tuple[int, ...]:
        if self.stored is not None:
            return self.stored
        return self.shape[::-1] if self.transposed else self.shape


@dataclasses.dataclass(frozen=True)
class Linear:
    """``y = x · Wᵀ + b`` with W ``[out, in]``."""

    weight: Part
    bias: Part | None = None


@dataclasses.dataclass(frozen=True)
class Norm:
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axis.

    Attributes:
        weight: None where nothing is learned (OLMo 1, nanochat): a gain of 1.
    """

    kind: Literal["rms", "layer"]
    weight: Part | None
    epsilon: float
    bias: Part | None = None

    def fits(self, channels: int) -> bool:
        """Whether it can be of so many channels: one that has learned nothing can be of any."""
        return self.weight is None or self.weight.shape == (channels,)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021), half-split layout: where a family keeps pairs together (GPT-J), `Part.rows` of
    q and k take them apart.

    Attributes:
        frequencies: inverse frequencies in radians per token, one for each rotated pair, scaling applied.
        factor: multiplies cos and sin (YaRN's attention factor); 1 elsewhere.
    """

    frequencies: tuple[float, ...]
    factor: float = 1.0

    @property
    def rotated(self) -> int:
        """Rotated channels of each head; the rest pass through."""
        return 2 * len(self.frequencies)


@dataclasses.dataclass(frozen=True)
class Alibi:
    """Positions as a bias on scores, which a token's distance makes lower (Press et al. 2022): `exporter.alibi`.

    Attributes:
        slopes: of each head, per token.
        factor: multiplies the bias; 1 elsewhere than in Falcon.
        bfloat16: positions, slopes and their product are rounded to bfloat16 (Falcon).
        counts_padding: padding between two tokens makes them further apart (MPT).
    """

    slopes: tuple[float, ...]
    factor: float = 1.0
    bfloat16: bool = False
    counts_padding: bool = False


@dataclasses.dataclass(frozen=True)
class Sinusoids:
    """Positions as sines and cosines that are added to embeddings (Vaswani et al. 2017), which nobody learns:
    `exporter.sinusoids`.

    Attributes:
        first: place of the first token.
    """

    first: int = 0


@dataclasses.dataclass(frozen=True)
class Attention:
    """Causal attention with H query heads over K key/value heads.

    Attributes:
        window: each token sees itself and the ``window − 1`` tokens before it; None for all.
        scale: multiplies q·k.
        softcap: scores become ``softcap · tanh(score / softcap)``; 0 for none.
        q_norm, k_norm: norms before the rotation: over each head where it has D channels (Qwen 3, Gemma 3), else
            over all of them together (OLMo 2).
        rotates_first: the rotation comes before those norms (HunYuan).
        alibi: bias on the scores by position, in the place of a rotation.
    """

    heads: int
    kv_heads: int
    head_dim: int
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    scale: float
    rope: Rope | None = None
    window: int | None = None
    softcap: float = 0.0
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    rotates_first: bool = False
    alibi: Alibi | None = None

    @property
    def keeps_heads(self) -> str:
        """Why no head can leave without changing the others; empty where one can."""
        if self.q_norm is not None and not self.q_norm.fits(self.head_dim):
            return "its norms of q and k read all heads together"
        return "the slope of each head follows from how many there are" if self.alibi is not None else ""


@dataclasses.dataclass(frozen=True)
class Xielu:
    """xIELU (Huang & Schlag 2024): ``a·relu(x)² + b·(elu(x) − x) + β·elu(x)`` with a = softplus(positive) and b =
    softplus(negative), which are ``[1]``; what is called α_n there is b + β."""

    positive: Part
    negative: Part
    beta: float


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """``down(act(gate(x)) · up(x))``, or ``down(act(up(x)))`` where there is no gate."""

    up: Linear
    down: Linear
    activation: Activation
    gate: Linear | None = None
    xielu: Xielu | None = None


@dataclasses.dataclass(frozen=True)
class Layer:
    """One residual block.

    Sequential: ``x += post(attention(norm(x)))`` then ``x += post(ffn(norm(x)))``. Parallel (GPT-NeoX):
    ``x += attention(norm(x)) + ffn(norm'(x))``, both norms reading the same x.

    Attributes:
        attention_norm: None where attention reads x itself (OLMo 2).
        ffn_norm: None where the feed-forward reads x itself (OLMo 2), in a parallel layer what attention reads (Phi).
    """

    attention: Attention
    ffn: FeedForward
    attention_norm: Norm | None
    ffn_norm: Norm | None
    attention_post_norm: Norm | None = None
    ffn_post_norm: Norm | None = None
    parallel: bool = False

    @property
    def shares_norm(self) -> bool:
        """Whether q, k, v and the feed-forward read one norm."""
        return self.parallel and self.ffn_norm is None


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A whole model.

    Attributes:
        family: the family's file name.
        context_length: largest number of tokens the model was trained for.
        embedding: ``[V, E]``.
        embedding_scale: multiplies embeddings (Gemma: √E).
        embedding_norm: of what is looked up (BLOOM).
        positions: what is added to embeddings by position, learned ``[context, E]`` or not; None with rotary or ALiBi.
        head: ``[V, E]``; the same `Part` as `embedding` where they are tied.
        logit_softcap: logits become ``c · tanh(logits / c)``; 0 for none.
        head_input: a map ``[E, E]`` between the last norm and the head; no checkpoint has one, a rotation makes it.
        constants: scalars that checkpoints hold and nobody learns, by the names of their tensors.
    """

    family: str
    vocab_size: int
    hidden_size: int
    context_length: int
    embedding: Part
    layers: tuple[Layer, ...]
    norm: Norm
    head: Linear
    embedding_scale: float = 1.0
    positions: Part | Sinusoids | None = None
    embedding_norm: Norm | None = None
    logit_softcap: float = 0.0
    head_input: Linear | None = None
    constants: tuple[tuple[str, float], ...] = ()

    @property
    def tied(self) -> bool:
        return self.head.weight == self.embedding

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every learned part with its role, in graph order; a tied head is not repeated."""
        yield "embedding.weight", self.embedding
        if isinstance(self.positions, Part):
            yield "positions.weight", self.positions
        if self.embedding_norm is not None:
            yield from _parts_of("embedding_norm", self.embedding_norm)
        for i, layer in enumerate(self.layers):
            yield from _parts_of(f"layers.{i}", layer)
        yield from _parts_of("norm", self.norm)
        if self.head_input is not None:
            yield from _parts_of("head_input", self.head_input)
        if not self.tied:
            yield "head.weight", self.head.weight
        if self.head.bias is not None:
            yield "head.bias", self.head.bias


def _parts_of(role: str, node: object) -> Iterator[tuple[str, Part]]:
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        value = getattr(node, field.name)
        if isinstance(value, Part):
            yield f"{role}.{field.name}", value
        elif dataclasses.is_dataclass(value):
            yield from _parts_of(f"{role}.{field.name}", value)
