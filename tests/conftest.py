"""Being here puts this folder on the import path, so that all tests can ``from tiny import tiny``."""
