"""The routes of the HTTP API: decode, ask, answer."""
