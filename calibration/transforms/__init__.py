"""Changes of a decoder's weights that leave its function as it is, made before a graph is built from them.

What they change is the size of single channels, which is what rounding activations to 8 bits suffers from.
"""
