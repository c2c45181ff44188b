"""WSGI's environ."""

from __future__ import annotations

from squall_runner.web.wsgi import Body, environ_of


def test_headers_with_underscores_are_not_taken_for_those_with_dashes() -> None:
    headers = [(b"x-user", b"me"), (b"x_user", b"root"), (b"content_length", b"9"), (b"content_type", b"x")]
    scope = {"method": "GET", "path": "/", "query_string": b"", "headers": headers}

    environ = environ_of(scope, Body(dict), several=False)

    assert environ["HTTP_X_USER"] == "me"
    assert {"CONTENT_LENGTH", "CONTENT_TYPE"}.isdisjoint(environ)
