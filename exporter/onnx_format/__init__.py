"""ONNX files as input: somebody else's graph, its weights left where they lie.

`wire` walks the protobuf without taking its large tensors in, `external` checks where tensors say they lie, `structure`
checks that the graph is one, `weights` makes its float tensors expressions, `halves` widens half precision.
`reader.read_graph` is all of it.
"""
