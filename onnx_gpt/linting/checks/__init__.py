"""One check a file: ``check(subject) → findings``; ``TARGETS`` names the targets that it is for, all by default."""
