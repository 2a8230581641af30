"""Where two graphs of one model part: the pass, the firing and the smallest piece, or the point and the layer."""
