"""The line of every key in a TOML file, for messages.

`tomllib` gives values without positions, so this walks the text once more. It runs only on text that
`tomllib` has accepted and can therefore stay small: it finds keys and skips values.
"""

import re
import tomllib
from typing import Any

KeyPath = tuple[str | int, ...]

_BARE_VALUE = re.compile(r"[^,\]}\n#]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|(?!""").)*"""(?:""?)?|\'\'\'(?:(?!\'\'\').)*\'\'\'(?:\'\'?)?|"(?:\\.|[^"\\])*"|\'[^\']*\'',
    re.DOTALL,
)
_KEY = re.compile(r'(?:"(?:\\.|[^"\\])*"|\'[^\']*\'|[A-Za-z0-9_.\- \t])+')


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key of valid TOML. Items of arrays are numbered from 0; `()` is the file."""
    return _Walk(text).lines


class _Walk:
    """One pass over valid TOML text; `lines` is the result."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.line, self.seen = text, 0, 1, 0
        self.lines: dict[KeyPath, int] = {(): 1}
        self.counts: dict[KeyPath, int] = {}  # how many [[tables]] of each name have begun
        table: KeyPath = ()
        while self._skip_blank() < len(text):
            if text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip_blank(self) -> int:
        found = _BLANK.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at

    def _note(self, path: KeyPath) -> None:
        """Remember the line of `path` and, where they are new, of the tables above it."""
        self.line += self.text.count("\n", self.seen, self.at)
        self.seen = self.at
        for depth in range(1, len(path)):
            self.lines.setdefault(path[:depth], self.line)
        self.lines[path] = self.line

    def _key(self) -> KeyPath:
        """The parts of the dotted key at the current place; quoting and escapes are left to tomllib."""
        found = _KEY.match(self.text, self.at)
        assert found is not None, "key_lines is called on valid TOML only"
        self.at = found.end()
        parts: list[str | int] = []
        inner: Any = tomllib.loads(f"{found[0]} = 0")
        while isinstance(inner, dict):
            part, inner = next(iter(inner.items()))
            parts.append(part)
        return tuple(parts)

    def _header(self) -> KeyPath:
        many = self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        self.at = self._skip_blank()
        path: KeyPath = ()
        names = self._key()
        for depth, name in enumerate(names):
            path = (*path, name)
            if many and depth == len(names) - 1:
                self.counts[path] = self.counts.get(path, 0) + 1
                if path not in self.lines:
                    self._note(path)
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        self._note(path)
        self.at += 2 if many else 1
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table + self._key()
        self._note(path)
        self.at += 1  # the equals sign
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip_blank()
        opening = self.text[self.at]
        if opening == "[":
            self._items("]", path)
        elif opening == "{":
            self._items("}", path)
        else:
            found = (_STRING if opening in "\"'" else _BARE_VALUE).match(self.text, self.at)
            self.at = found.end() if found else self.at

    def _items(self, closing: str, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while self._skip_blank() < len(self.text) and self.text[self.at] != closing:
            if self.text[self.at] == ",":
                self.at += 1
            elif closing == "}":
                self._pair(path)
            else:
                self._note((*path, index))
                self._value((*path, index))
                index += 1
        self.at += 1
