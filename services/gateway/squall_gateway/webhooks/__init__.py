"""Webhooks: the ends of calls, told to URLs. From results to deliveries, from deliveries to requests."""
