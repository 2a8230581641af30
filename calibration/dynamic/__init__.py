"""Dynamic 8-bit: activations by a scale for each token, found as the graph runs, weights by one for each channel."""
