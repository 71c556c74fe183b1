"""Static shared memory of the shim's kernels: they are thread-local variables of its library, of the functions that a
kernel calls, however deep.

Who calls whom is what the linker was told: the library is linked with `--emit-relocs`, every function in a section of
its own, so that each call and each variable is a relocation.
"""

import struct
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_GRAIN = 128  # what a block's memory is rounded to, where dynamic memory follows that is aligned so

_SYMBOLS, _RELOCATIONS = 2, 4  # kinds of sections
_FUNCTION, _THREAD_LOCAL = 2, 6  # kinds of symbols
# A relocation of x86-64: an address. All others of code count from the end of their four bytes.
_TO_ADDRESS = 1


@dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    kind: int
    section: int
    value: int
    size: int


class ElfFile:
    """A shared library of 64 bits, as Linux has it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.read_bytes()
        start, entry, number = (
            struct.unpack_from(form, self._file, at)[0]
            for form, at in (("<Q", 0x28), ("<H", 0x3A), ("<H", 0x3C))
        )
        self._sections = []
        for i in range(number):
            kind, _, _, offset, size, link = struct.unpack_from(
                "<IQQQQI", self._file, start + i * entry + 4
            )
            self._sections.append(_Section(kind, offset, size, link))
        self._table = next(i for i, s in enumerate(self._sections) if s.kind == _SYMBOLS)

    @cached_property
    def _symbols(self) -> list[_Symbol]:
        table = self._sections[self._table]
        names = self._sections[table.link].offset
        found = []
        for at in range(table.offset, table.offset + table.size, 24):
            name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", self._file, at)
            end = self._file.index(b"\0", names + name)
            text = self._file[names + name : end].decode()
            found.append(_Symbol(text, info & 15, section, value, size))
        return found

    def address(self, name: str) -> int:
        """Of a symbol, from where the library begins."""
        return next(s.value for s in self._symbols if s.name == name)

    def static_shared(self) -> dict[int, int]:
        """Bytes of the variables that a function reaches, by its address; functions that reach none are left out."""
        functions = _Ordered([s for s in self._symbols if s.kind == _FUNCTION and s.section])
        calls, own = defaultdict(set), defaultdict(set)
        for section in self._sections:
            if section.kind != _RELOCATIONS or section.link != self._table:
                continue
            for at in range(section.offset, section.offset + section.size, 24):
                place, info, addend = struct.unpack_from("<QQq", self._file, at)
                source, symbol = functions.holding(place), self._symbols[info >> 32]
                if source is None:
                    continue
                if symbol.kind == _THREAD_LOCAL:
                    own[source.value].add(symbol)
                    continue
                relative = 0 if info & 0xFFFFFFFF == _TO_ADDRESS else 4
                target = functions.holding(symbol.value + addend + relative)
                if target is not None:
                    calls[source.value].add(target.value)
        return {
            address: -(-size // _GRAIN) * _GRAIN
            for address in functions.begins
            if (size := sum(variable.size for variable in _reached(address, calls, own)))
        }


class _Ordered:
    """Symbols by address."""

    def __init__(self, symbols: list[_Symbol]) -> None:
        by_address = {s.value: s for s in symbols if s.size}
        self.begins = sorted(by_address)
        self._by_address = by_address

    def holding(self, address: int) -> _Symbol | None:
        """The symbol whose memory an address is in."""
        i = bisect_right(self.begins, address) - 1
        if i < 0:
            return None
        symbol = self._by_address[self.begins[i]]
        return symbol if address < symbol.value + symbol.size else None


def _reached(start: int, calls: dict[int, set[int]], own: dict[int, set[_Symbol]]) -> set[_Symbol]:
    seen, left = {start}, [start]
    found: set[_Symbol] = set()
    while left:
        at = left.pop()
        found |= own.get(at, set())
        fresh = calls.get(at, set()) - seen
        seen |= fresh
        left.extend(fresh)
    return found
