"""The gateway: admission, the public HTTP API, results to callers. Never runs or unpickles user data."""
