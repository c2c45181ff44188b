"""The public HTTP API as data: routes, header names, frame kinds and JSON bodies. The gateway imports them too.

Payloads are opaque and travel raw; everything about them is in headers or in frame metadata. Streams of results, items
and inputs are sequences of frames (`squall_runner.frames`). An answer that is an error is JSON
`{"error": {"code", "message", "fix", "retryable", "data"}}` with the status of the error's class.
"""
