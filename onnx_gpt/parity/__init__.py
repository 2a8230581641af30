"""Parity: how far a bundle is from its reference, and whether that is near enough to publish."""
