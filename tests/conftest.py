"""Being here puts this folder on the import path, so that all tests can ``from tiny import tiny``."""

from hypothesis import HealthCheck, settings

# Machines of continuous integration stand still at times: how long an example takes says nothing there.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
