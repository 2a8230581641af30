"""A module file that fails when it is imported, as `module:` may be given one."""

raise ZeroDivisionError("at import")
