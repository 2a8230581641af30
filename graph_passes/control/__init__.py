"""What a decoder graph computes from its control inputs, told by running it and not by how it is spelled.

The *control island* is the part of a graph that depends on integers alone: lengths, ``attention_mask``,
``position_ids``, never on embeddings, weights or what a cache holds. It meets the data at few edges (masks,
rotary tables, rows of learned positions), and each edge is small enough to be run on a set of calls that
together tell every meaning from every other.

`interface` names the inputs, `island` finds the edges, `probe` runs them, `masks` and `tables` say what they mean,
`rewrite` writes the canonical spelling, `edges` puts it in their place. `caches` tells which input is whose cache,
`tokens` whether tokens meet in attention alone, and `names` gives the graph the contract's names.
"""
