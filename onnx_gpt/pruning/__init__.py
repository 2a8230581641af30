"""Smaller checkpoints out of trained ones: the job, its settings, its steps and its report."""
