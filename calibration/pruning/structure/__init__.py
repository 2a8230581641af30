"""Takes neurons, heads, layers and tokens out of a decoder, so that it is smaller and faster on any runtime."""
