"""Ways to spoil a sound file: values that readers trip over, put where a value stood, and plain damage to bytes.

Every choice is drawn from a `random.Random`, which may be one that hypothesis controls: then it also looks for the
smallest file that still fails.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

_Item = TypeVar("_Item")

Spoil = Callable[[Random, bytes], bytes]

_NUMBERS = """
0 1 -1 -0 -0.0 0.5 1.5 +1 01 1. .5 1e5 1e-320 1e308 -1e308 1e999 NaN nan Infinity -inf .nan .inf true null None ~ 1_0
2147483648 4294967296 9223372036854775807 9223372036854775808 -9223372036854775808 18446744073709551616 1000000000
999999999 67108865 8193 65536 1,5 0x10 1:30 2001-01-01 9999-99-99 \u0661\u0662\u0663 \uff11\uff12 \u00b2
"""
NUMBERS = (
    *_NUMBERS.split(),
    *("", "9" * 400, "9" * 4300, "9" * 5000, "0x" + "f" * 4000, "1:" * 200 + "1.5", "1" + "0" * 5000 + ".0"),
)
"""What may stand where a number stood; other scripts' digits are digits to Python."""

_NAMES = """
../x.png ../../../../etc/passwd /nowhere/x.png C:\\x.png \\\\host\\x . .. a/../b.png a//b.png ./a.png a.png/ a.png ~ CON
images labels train val person persongroup none dog cat 1 -1 no null
"""
WORDS = (
    *("", " ", "\0", "a\0b", "\n", "\r", "\t", "\u2028", "\x85", "\x1c", "\ufeff", "\x1b[31m", "[red]x[/red]", "=1+1"),
    *("\ud800", "a\udfff.png", "\u202egpj.a", "e\u0301", "\ufb01", "\U0001f600", "\u0130", "%s%n", "{0}", "'", '"'),
    *("a" * 256, "x" * 5000, "x/" * 100, "x/" * 2000, "x/" * 1100 + "a.png", "x" * 300 + ".png"),
    *_NAMES.split(),
)
"""What may stand where a name stood. `/` alone is not among them: a list of images there means all of this machine."""

MARKUP = (
    *("<", ">", "&", "&amp;", "&x;", "]]>", "<![CDATA[", "<!--", "<a>", "</a>", "<?xml version='1.0'?>"),
    '<!DOCTYPE a [<!ENTITY x "y">]>',
    *(f"<?xml version='1.0' encoding='{name}'?>" for name in ("utf-16", "latin-1", "hex", "idna", "undefined", "x")),
)
_LISTS_OF_LISTS = "[&a [x,x,x,x,x,x,x,x,x]" + "".join(
    f", &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdef", "bcdefg", strict=True)
)
_KEYS_OF_KEYS = "{a: &a {x: 1, y: 1}" + "".join(
    f", {b}: &{b} {{x: *{a}, y: *{a}, z: *{a}}}" for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
YAML = (
    *("!!int ''", "!!float ''", "!!bool maybe", "!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a]", "!!str [a]"),
    *("!!python/object/apply:os.getcwd []", "!x y", "&a [*a]", "&a {b: *a}", "{<<: 1}", "? [a]\n: b", "- a", "a: b"),
    *("*a", "&a", '"\\ud800"', '"\\0"', "%YAML 9.9", "---", "...", "\t", "[a, [b, [c]]]", "{a: {b: 1}}"),
    *("|", ">", "=", "<<", "@", "`", "[", "{"),
    *(_LISTS_OF_LISTS + "]", _KEYS_OF_KEYS + "}", "{&k a: &v {b: &w {c: 1}}, d: *v, e: *w}"),
)
"""Tags, aliases, and aliases of aliases that mean millions of values."""

_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|<[^<>\n]*>|[\w.+-]+|\s+|.', re.DOTALL)
_NUMBER = re.compile(r"[+-]?[\d.]+(?:[eE][+-]?\d+)?")
_DEPTHS = (3, 60, 2000, 20_000)


def pick(random: Random, items: Sequence[_Item]) -> _Item:
    """Draw one, each as likely."""
    return items[random.randrange(len(items))]


def encoded(text: str) -> bytes:
    """Return a text as UTF-8, lone surrogates as what they would be."""
    return text.encode("utf-8", "surrogatepass")


def spoil_tokens(extra: Sequence[str] = (), quote: str = "") -> Spoil:
    """Return what puts other words and numbers into a text, or moves, repeats or removes its own.

    Args:
        extra: more to put in, of the text's own language.
        quote: what a word is put between where the one before it was.
    """

    def spoil(random: Random, content: bytes) -> bytes:
        tokens = _TOKEN.findall(content.decode("utf-8", "replace"))
        for _ in range(pick(random, (1, 1, 1, 2, 3))):
            if not tokens:
                break
            place, action = random.randrange(len(tokens)), random.randrange(12)
            if action < 7:
                tokens[place] = _in_place_of(tokens[place], random, extra, quote)
            elif action == 7:
                tokens.insert(place, pick(random, (*extra, *WORDS, *NUMBERS)))
            elif action == 8:
                del tokens[place]
            elif action == 9:
                tokens[place] *= pick(random, (2, 3, 50))
            elif action == 10:
                other = random.randrange(len(tokens))
                tokens[place], tokens[other] = tokens[other], tokens[place]
            else:
                opening, closing = pick(random, (("[", "]"), ("{", "}"), ("<a>", "</a>"), ('{"a":', "}"), ("(", ")")))
                depth = pick(random, _DEPTHS)
                tokens[place] = opening * depth + tokens[place] + closing * pick(random, (0, depth))
        return encoded("".join(tokens))

    return spoil


def _in_place_of(token: str, random: Random, extra: Sequence[str], quote: str) -> str:
    if extra and random.randrange(3) == 0:
        return pick(random, extra)
    if _NUMBER.fullmatch(token):
        return pick(random, NUMBERS if random.randrange(5) else WORDS)
    word = pick(random, WORDS if random.randrange(4) else NUMBERS)
    if quote and token.startswith(quote):
        return f"{quote}{word}{quote}" if random.randrange(4) else word
    return word


def spoil_lines(random: Random, content: bytes) -> bytes:
    """Repeat, remove, swap, cut or join lines, or end them in another way."""
    lines = content.splitlines(keepends=True) or [b""]
    place, other, action = random.randrange(len(lines)), random.randrange(len(lines)), random.randrange(8)
    if action == 0:
        lines[place] *= pick(random, (2, 3, 200))
    elif action == 1:
        del lines[place]
    elif action == 2:
        lines[place], lines[other] = lines[other], lines[place]
    elif action == 3:
        lines[place] = lines[place][: random.randrange(len(lines[place]) + 1)]
    elif action == 4:
        lines = [line.replace(b"\n", pick(random, (b"\r", b"\r\n", b"\0", b"\x0c", b" "))) for line in lines]
    elif action == 5:
        lines = lines[:place]
    elif action == 6:
        lines.insert(place, pick(random, (b"\n", b"  \n", b"\t\n", b"#\n", b"\xff\n", b"\xef\xbb\xbf")))
    else:
        lines[place] = b"  " + lines[place]
    return b"".join(lines)


def spoil_bytes(random: Random, content: bytes) -> bytes:
    """Flip, cut, repeat, insert, overwrite; or replace all."""
    spoilt = bytearray(content)
    for _ in range(pick(random, (1, 1, 1, 2, 5))):
        place, action = random.randrange(len(spoilt) + 1), random.randrange(9)
        if action == 0 and place < len(spoilt):
            spoilt[place] ^= 1 << random.randrange(8)
        elif action == 1 and place < len(spoilt):
            spoilt[place] = random.randrange(256)
        elif action == 2:
            del spoilt[place:]
        elif action == 3:
            del spoilt[place : place + pick(random, (1, 2, 16, 100))]
        elif action == 4:
            spoilt[place:place] = pick(
                random, (b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\x80", b"\0" * 500)
            )
        elif action == 5:
            spoilt[place:place] = spoilt[max(0, place - 64) : place]
        elif action == 6:
            _poke(random, spoilt, place)
        elif action == 7:
            _poke(random, spoilt, min(place, random.randrange(64)))
        else:
            whole = (
                b"",
                b"\0",
                b"\xff" * 9,
                b"null",
                b"[]",
                b"{}",
                b'""',
                b"0",
                b"<a/>",
                b"\xff\xfe[\0]\0",
                b"a: b",
                b"PK",
            )
            spoilt = bytearray(pick(random, whole))
    return bytes(spoilt)


_SIZES = (0, 1, 2, 3, 7, 8, 9, 255, 256, 4096, 8191, 8193, 20_000, 65_535, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _poke(random: Random, content: bytearray, place: int) -> None:
    """Overwrite a number of 1, 2 or 4 bytes."""
    width, order = pick(random, ((1, "B"), (2, "H"), (4, "I"))), pick(random, "<>")
    number = pick(random, _SIZES) & ((1 << 8 * width[0]) - 1)
    if place + width[0] <= len(content):
        content[place : place + width[0]] = struct.pack(order + width[1], number)


def spoil_png(random: Random, content: bytes) -> bytes:
    """Change, repeat, move or remove a chunk of a PNG, and make its checksum right again."""
    chunks: list[tuple[bytes, bytes]] = []
    place = 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    index, other, action = random.randrange(len(chunks)), random.randrange(len(chunks)), random.randrange(6)
    name, body = chunks[index]
    if action == 0:
        data = bytearray(body)
        _poke(random, data, random.randrange(len(data) + 1))
        chunks[index] = (name, bytes(data))
    elif action == 1:
        chunks[index] = (name, spoil_bytes(random, body))
    elif action == 2:
        chunks[index] = (
            pick(random, (b"IDAT", b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"zTXt", b"iTXt")),
            body,
        )
    elif action == 3:
        del chunks[index]
    elif action == 4:
        chunks[index], chunks[other] = chunks[other], chunks[index]
    else:
        chunks.insert(index, chunks[other])
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1.0, -0.0, 1e308, -1e308, float("nan"), float("inf"), 8193, 67108865),
    *(10**9, 10**30, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, "", "0", "1", "a.png", [], {}, [[]], [{}]),
    *([None], {"id": 1}, [1, 2, 3], [1, 2, 3, 4, 5], [0, 0, 0, 0], [0, 0, 1, 1], [0.1, 0.1, 0.5, 0.5], [39, 29, 1, 1]),
    *([-5, 0, 10, 10], [1, 1, -1, 1], [1, 1, 1e-12, 1], [1e9, 1, 1, 1], [2**63, 0, 1, 1], [True, 0, 1, 1]),
    *(["1", 0, 1, 1], [None, 0, 1, 1]),
)
_RAW_MARK = "@raw@"
_RAW = (
    *(
        "[" * 100_000,
        '{"a":' * 20_000,
        "[" * 3000 + "]" * 3000,
        "9" * 4300,
        "9" * 4301,
        "-" + "9" * 5000,
        "1e999",
        "-0",
    ),
    *("01", "+1", ".5", "1.", "NaN", "-Infinity", '"\\ud800"', '"\\u0000"', '"\t"', "1E400", "tru", "'a'", "1e-400"),
    *("[1,]", '{"id":1,"id":2}', '"\\x"', "/**/1", "\x00", '"a', "[]]", "0x1"),
)


def spoil_json(random: Random, content: bytes) -> bytes:
    """Put other values into a JSON document, remove, repeat and swap its own, or write it in another way."""
    root: Any = json.loads(content)
    raw = ""
    for _ in range(pick(random, (1, 1, 1, 2, 3))):
        place, other = _place(random, root), _place(random, root)
        if place is None or other is None:
            break
        holder, key = place
        action = random.randrange(10)
        if action < 4:
            holder[key] = _fresh(pick(random, WORDS) if random.randrange(4) == 0 else pick(random, _VALUES))
        elif action == 4:
            raw, holder[key] = pick(random, _RAW), _RAW_MARK
        elif action == 5:
            del holder[key]
        elif action == 6:
            holder[key] = _fresh(other[0][other[1]])
        elif action == 7:
            holder[key] = [holder[key]] if random.randrange(2) else {"a": holder[key]}
        elif isinstance(holder, list):
            holder.insert(key, _fresh(holder[key]))
        else:
            name = pick(random, WORDS) if action == 8 else pick(random, list(holder))
            holder[name] = holder.pop(key)
    text = json.dumps(root, ensure_ascii=random.randrange(3) > 0, indent=pick(random, (None, None, 1)))
    return encoded(text.replace(f'"{_RAW_MARK}"', raw))


def _fresh(value: Any) -> Any:
    """Return a copy, so that no value holds itself."""
    return json.loads(json.dumps(value))


def _place(random: Random, root: Any) -> tuple[Any, Any] | None:
    """Return a list or object in a document, and a key of it; None where nothing is left."""
    holder = root
    while isinstance(holder, (list, dict)) and holder:
        key = pick(random, range(len(holder)) if isinstance(holder, list) else list(holder))
        inner = holder[key]
        if not isinstance(inner, (list, dict)) or not inner or random.randrange(4) == 0:
            return holder, key
        holder = inner
    return None
