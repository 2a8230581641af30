"""The contract linter: does this folder hold what a runtime expects of a decoder? Headers only; nothing is run.

A check is a file in `checks`, a runtime a file in `runtimes`, a repair a file in `repairs`: found because it exists.
"""
