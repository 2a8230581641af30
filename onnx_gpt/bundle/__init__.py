"""Bundles: a folder that one runtime loads as it is."""
