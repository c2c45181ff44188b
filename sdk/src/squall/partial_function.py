"""The decorators of functions and methods, for programs that import them from here."""

from squall.markers import batched, concurrent, enter, exit, method
from squall.web import asgi_app, fastapi_endpoint, web_endpoint, web_server, wsgi_app

__all__ = [
    "asgi_app",
    "batched",
    "concurrent",
    "enter",
    "exit",
    "fastapi_endpoint",
    "method",
    "web_endpoint",
    "web_server",
    "wsgi_app",
]
