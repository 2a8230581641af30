"""What calibration remembers of activations: monoids, so that batches stream and shards merge.

Each file has one, with the same four verbs. ``S.empty(width)`` has seen nothing; ``s.add(batch)`` takes rows ``[T, K]``
(any leading axes) and gives the statistic back, its storage reused; ``s.merge(other)`` is that of both together;
``s.finish()`` is the answer. Adding piece by piece, or merging shards in any grouping, gives what one batch of
everything gives, up to the rounding of sums. Memory follows the width and never the number of samples.
"""
