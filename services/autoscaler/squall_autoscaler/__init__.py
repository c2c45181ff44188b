"""The autoscaler: decides how many containers each pool should have, and says why."""
