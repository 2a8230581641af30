"""Makes decoders smaller: single weights set to zero (`weights`), or neurons, heads, layers, tokens taken out
(`structure`)."""
