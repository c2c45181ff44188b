"""The scheduler: picks a node for each container, fires schedules, reconciles calls. It starts nothing."""
