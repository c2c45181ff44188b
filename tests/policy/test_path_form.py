"""The path form: what answers say about paths, and whose page a request without the prefix is from."""

from __future__ import annotations

import pytest

from squall_gateway.web.addresses import Addressed
from squall_gateway.web.path_form import PathForm, home_of, home_of_socket

ROOT = "/web/main--shop-page"
HOST = b"10.0.0.5:8700"
BROWSER = {b"accept": b"text/html,*/*", b"user-agent": b"Mozilla/5.0"}
KNOWN = ("main--shop-page", "main--other-page").__contains__


def told(name: str, value: str, path: str = f"{ROOT}/x", **headers: str) -> str:
    """What becomes of one header of an answer."""
    asked = {b"host": HOST, **{key.replace("_", "-").encode(): value.encode() for key, value in headers.items()}}
    form = PathForm(Addressed("main--shop-page", ROOT), {"path": path}, asked, KNOWN)
    ((_, value_sent),) = form.headers([(name.encode(), value.encode())])
    return value_sent.decode()


@pytest.mark.parametrize("name", ["location", "content-location"])
@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/result/7?a=/b", f"{ROOT}/result/7?a=/b"),
        ("/", f"{ROOT}/"),
        ("/web/page", f"{ROOT}/web/page"),  # a path of the app's own
        ("http://10.0.0.5:8700/result/7", f"http://10.0.0.5:8700{ROOT}/result/7"),
        ("https://10.0.0.5:8700/", f"https://10.0.0.5:8700{ROOT}/"),
        *((same, same) for same in ("", "7", "../7", "?a=1", "//elsewhere/x", "https://elsewhere/x", "mailto:/x")),
        *((same, same) for same in (ROOT, f"{ROOT}/y", f"{ROOT}?a", "/web/main--other-page/", f"http://10.0.0.5:8700{ROOT}/y")),
    ],
)  # fmt: skip
def test_paths_of_the_app_get_its_prefix(name: str, target: str, sent: str) -> None:
    assert told(name, target) == sent


def test_a_page_that_is_fetched_anew_is_one_of_the_app() -> None:
    assert told("refresh", "5; url=/result/7") == f"5; url={ROOT}/result/7"
    assert told("refresh", "5") == "5"
    assert told("refresh", "0;URL='https://elsewhere/'") == "0;URL='https://elsewhere/'"


@pytest.mark.parametrize(
    ("cookie", "sent"),
    [
        ("a=1; Path=/; HttpOnly", f"a=1; Path={ROOT}; HttpOnly"),
        ("a=1; HttpOnly; path=/x", f"a=1; HttpOnly; path={ROOT}/x"),
        *((same, same) for same in (f"a=1; Path={ROOT}", "a=1", "a=/; Secure", "__Host-a=1; Secure; Path=/")),
    ],
)
def test_cookies_are_for_the_app_alone(cookie: str, sent: str) -> None:
    assert told("set-cookie", cookie) == sent


def test_a_cookie_without_a_path_is_not_for_all_apps() -> None:
    assert told("set-cookie", "a=1", path=ROOT) == f"a=1; Path={ROOT}"


def test_other_headers_stay() -> None:
    assert told("x-path", "/result/7") == "/result/7"


def test_a_browser_is_told_once_whose_page_it_shows() -> None:
    asked = {b"host": HOST, **BROWSER}
    form = PathForm(Addressed("main--shop-page", ROOT), {"path": ROOT}, asked, KNOWN)
    ((name, cookie),) = form.headers([])
    assert (name, cookie) == (b"set-cookie", b"squall-web=main--shop-page; Path=/; HttpOnly; SameSite=Strict")

    asked[b"cookie"] = b"x=1; squall-web=main--shop-page"
    assert PathForm(Addressed("main--shop-page", ROOT), {"path": ROOT}, asked, KNOWN).headers([]) == []
    script = {**BROWSER, b"sec-fetch-dest": b"script"}
    assert PathForm(Addressed("main--shop-page", ROOT), {"path": ROOT}, script, KNOWN).headers([]) == []


@pytest.mark.parametrize(
    ("headers", "prefix"),
    [
        ({b"referer": b"http://10.0.0.5:8700/web/main--shop-page/form?x"}, ROOT),
        ({b"referer": b"http://10.0.0.5:8700/web/MAIN--shop-page"}, "/web/MAIN--shop-page"),
        ({b"referer": b"http://elsewhere/web/main--shop-page/"}, ""),
        ({b"referer": b"http://10.0.0.5:8700/web/nobody/"}, ""),
        ({b"referer": b"http://[/web/main--shop-page/"}, ""),
        ({b"referer": b"http://10.0.0.5:8700/room/1", b"cookie": b"squall-web=main--shop-page"}, ROOT),
        ({b"referer": b"http://elsewhere/", b"cookie": b"squall-web=main--shop-page"}, ""),
        ({b"sec-fetch-site": b"same-origin", b"cookie": b"squall-web=main--shop-page"}, ROOT),
        ({b"sec-fetch-site": b"cross-site", b"cookie": b"squall-web=main--shop-page"}, ""),
        ({b"cookie": b"squall-web=main--shop-page"}, ""),
        ({b"sec-fetch-site": b"same-origin", b"cookie": b"squall-web=../v1"}, ""),
    ],
)
def test_a_request_belongs_to_the_page_of_this_host_that_sent_it(headers: dict[bytes, bytes], prefix: str) -> None:
    assert home_of({b"host": HOST, **headers}, KNOWN) == prefix


def test_a_request_for_the_api_follows_its_own_page_and_not_the_one_that_was_opened_last() -> None:
    opened = {b"host": HOST, b"sec-fetch-site": b"same-origin", b"cookie": b"squall-web=main--shop-page"}
    for more in ({}, {b"referer": b"http://10.0.0.5:8700/admin"}):
        assert home_of({**opened, **more}, KNOWN) == ROOT
        assert home_of({**opened, **more}, KNOWN, of_the_api=True) == ""
    page = {b"referer": b"http://10.0.0.5:8700/web/main--shop-page/"}
    assert home_of({**opened, **page}, KNOWN, of_the_api=True) == ROOT


@pytest.mark.parametrize(
    ("origin", "prefix"), [(b"http://10.0.0.5:8700", ROOT), (b"http://elsewhere", ""), (b"null", ""), (b"", "")]
)
def test_a_websocket_belongs_to_the_page_that_was_opened_last(origin: bytes, prefix: str) -> None:
    headers = {b"host": HOST, b"origin": origin, b"cookie": b"squall-web=main--shop-page"}
    assert home_of_socket(headers, KNOWN) == prefix
    assert home_of_socket({b"host": HOST, b"origin": origin}, KNOWN) == ""
