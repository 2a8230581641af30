"""Which format each weight takes: what every width costs in KL, bytes and time, and the choice under a budget."""
