"""The description of a decoder with a narrower residual stream."""

from __future__ import annotations

import dataclasses

from exporter.decoder import Decoder, Layer, Linear, Norm, Part


def narrower(decoder: Decoder, size: int) -> Decoder:
    """The description of a decoder with another width; heads stay what they are."""

    def into(linear: Linear) -> Linear:
        return dataclasses.replace(linear, weight=_as_used(linear.weight, linear.weight.shape[0], size))

    def out(linear: Linear) -> Linear:
        weight = _as_used(linear.weight, size, linear.weight.shape[1])
        return Linear(weight, None if linear.bias is None else _as_used(linear.bias, size))

    def norm(norm: Norm) -> Norm:
        return dataclasses.replace(
            norm,
            weight=None if norm.weight is None else _as_used(norm.weight, size),
            bias=None if norm.bias is None else _as_used(norm.bias, size),
        )

    def layer(layer: Layer) -> Layer:
        one, ffn = layer.attention, layer.ffn
        gate = None if ffn.gate is None else into(ffn.gate)
        return dataclasses.replace(
            layer,
            attention=dataclasses.replace(one, q=into(one.q), k=into(one.k), v=into(one.v), o=out(one.o)),
            ffn=dataclasses.replace(ffn, up=into(ffn.up), down=out(ffn.down), gate=gate),
            attention_norm=layer.attention_norm and norm(layer.attention_norm),
            ffn_norm=layer.ffn_norm and norm(layer.ffn_norm),
        )

    head, places = into(decoder.head), decoder.positions
    return dataclasses.replace(
        decoder,
        hidden_size=size,
        embedding=head.weight if decoder.tied else _as_used(decoder.embedding, decoder.vocab_size, size),
        positions=_as_used(places, places.shape[0], size) if isinstance(places, Part) else places,
        layers=tuple(map(layer, decoder.layers)),
        norm=norm(decoder.norm),
        head=head,
    )


def _as_used(part: Part, *shape: int) -> Part:
    """A part in another shape, as it is used: how a checkpoint stores it, its configuration says."""
    return Part(part.name, shape)
