"""Static 8-bit: activations by a scale for the whole tensor, fixed beforehand, weights by a scale for each channel."""
