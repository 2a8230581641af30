"""The peers, one file each. It runs in the peer's own environment and imports protocol.py only."""
