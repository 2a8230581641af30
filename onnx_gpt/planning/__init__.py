"""Choosing how to make a model smaller: what each way would cost and gain, by what was measured, before it is done."""
