"""squall: serverless Python functions on machines you own."""
