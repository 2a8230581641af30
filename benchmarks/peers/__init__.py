"""The peers, one file each. A peer's file runs in that peer's own environment and imports nothing else of ours."""
