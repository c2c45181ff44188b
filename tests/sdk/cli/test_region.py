"""The changing lines at the bottom of a terminal, and the text above them."""

from __future__ import annotations

import io
import re

import pytest

from squall.cli.region import Region, visible


class Screen:
    """What a terminal would show: enough of one for text, carriage return, cursor up and clear below."""

    def __init__(self, written: str) -> None:
        self.lines = [""]
        self._row = self._column = 0
        for token in re.findall(r"\033\[\??\d*[A-Za-z]|.|\n", written, re.DOTALL):
            self._take(token)

    def _take(self, token: str) -> None:
        if token == "\n":
            self._row, self._column = self._row + 1, 0
            if self._row == len(self.lines):
                self.lines.append("")
        elif token == "\r":
            self._column = 0
        elif token.endswith("A") and token.startswith("\033"):
            self._row -= int(token[2:-1])
        elif token == "\033[J":
            self.lines = [*self.lines[: self._row], self.lines[self._row][: self._column]]
        elif not token.startswith("\033"):
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + token + line[self._column + 1 :]
            self._column += 1

    @property
    def text(self) -> list[str]:
        return [line for line in self.lines if line]


class Terminal:
    """A region on a terminal that both streams of the program go to."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.status: list[str] = []
        self.region = Region(self.out, lambda: self.status)

    def shows(self) -> list[str]:
        self.region.refresh()
        return Screen(self.out.getvalue()).text


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_text_scrolls_above_the_region(terminal: Terminal) -> None:
    terminal.status = ["status 1", "status 2"]
    terminal.region.open()

    terminal.region.write(terminal.out, "first\n")
    terminal.region.write(terminal.out, "second\n")

    assert terminal.shows() == ["first", "second", "status 1", "status 2"]


def test_the_region_can_shrink_and_grow(terminal: Terminal) -> None:
    terminal.status = ["a", "b", "c"]
    terminal.region.open()
    terminal.status = ["a"]
    terminal.region.refresh()
    terminal.region.write(terminal.out, "text\n")
    terminal.status = ["a", "b"]
    terminal.region.refresh()

    assert terminal.shows() == ["text", "a", "b"]


def test_an_unfinished_line_is_in_the_region_until_it_ends(terminal: Terminal) -> None:
    terminal.status = ["status"]
    terminal.region.open()

    terminal.region.write(terminal.out, "begin")
    unfinished = terminal.shows()
    terminal.region.write(terminal.out, " end\n")

    assert unfinished == ["begin", "status"]
    assert terminal.shows() == ["begin end", "status"]


def test_a_progress_bar_with_carriage_returns_stays_one_line(terminal: Terminal) -> None:
    terminal.status = ["status"]
    terminal.region.open()

    seen = []
    for part in ("\r 0 %", "\r50 %", "\r100 %", "\n"):
        terminal.region.write(terminal.out, part)
        seen.append(terminal.shows()[0])

    assert seen == [" 0 %", "50 %", "100 %", "100 %"]
    assert terminal.shows() == ["100 %", "status"]


def test_programs_that_write_at_once_do_not_share_a_line(terminal: Terminal) -> None:
    terminal.status = ["status"]
    terminal.region.open()

    terminal.region.write(terminal.out, "\rone 10 %", source="a")
    terminal.region.write(terminal.out, "\rtwo 20 %", source="b")
    terminal.region.write(terminal.out, "\rone 30 %", source="a")

    assert sorted(terminal.shows()) == ["one 30 %", "status", "two 20 %"]


def test_closing_leaves_the_text_and_nothing_of_the_region(terminal: Terminal) -> None:
    terminal.status = ["status"]
    terminal.region.open()
    terminal.region.write(terminal.out, "whole\nrest")

    terminal.region.close()

    assert terminal.shows() == ["whole", "rest"]
    assert terminal.out.getvalue().endswith("\033[?25h"), "the cursor stays hidden"


def test_a_closed_region_passes_text_on_as_it_is(terminal: Terminal) -> None:
    terminal.region.write(terminal.out, "\r10 %\r20 %")

    assert terminal.out.getvalue() == "\r10 %\r20 %"


@pytest.mark.parametrize(
    ("text", "shown"), [("", ""), ("a", "a"), ("\ra", "a"), ("a\rb", "b"), ("a\r", "a"), ("a\rb\r", "b")]
)
def test_what_is_visible_of_an_unfinished_line(text: str, shown: str) -> None:
    assert visible(text) == shown
