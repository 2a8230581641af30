"""A student trained on what a teacher says: the job, its settings and its report."""
