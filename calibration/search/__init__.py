"""Which weights may be coarse: what each format costs the model, and the cheapest set of them that is good enough."""
