"""What each target's runtime expects. A runtime is a file here, with one value, ``EXPECTATION``."""
