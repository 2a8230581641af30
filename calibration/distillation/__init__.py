"""A decoder trained on what another one says: the only place where weights change by gradients.

The decoder runs from its description (`exporter.decoder`), so that every family and every variant can be trained
and none adds code of its own.
"""
