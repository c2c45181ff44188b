"""Web requests in the container: frames in, an ASGI app (or a server's port) behind them, frames out.

The gateway has parsed HTTP and WebSockets already, so there is no parser of either here.
"""
