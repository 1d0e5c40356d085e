"Seeded changes of a file: of its bytes, of the JSON in it, and with its digest made right again."

import hashlib
import json
import random
import struct
from collections.abc import Callable

from run_folders import places, removed, replaced

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_JSON_VALUES = (
    None,
    True,
    -1,
    0,
    10**30,
    2**63,
    1e308,
    "",
    "=1+1",
    "<img src=x onerror=alert(1)>",
    "../../etc/passwd",
    "a" * 5000,
    "\x1b[2J\x07",
    "\u202e",
    [],
    {},
    [[[[]]]],
    {"": {"": ""}},
)
_RAW = (b"NaN", b"Infinity", b"1e999", b'"\\ud800"', b"[" * 100_000, b"\xff\xfe", b"{}" * 3, b"")


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    "One to eight changes of the bytes; most of them near the beginning, where headers are."
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        end = max(1, min(len(data), 400) if chance.random() < 0.6 else len(data))
        start = chance.randrange(end)
        kind = chance.randrange(7)
        if kind == 0 and data:
            data[min(start, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            number = chance.choice(_NUMBERS)
            data[start : start + 4] = struct.pack(chance.choice("<>") + "I", number)
        elif kind == 2:
            data[start : start + 2] = struct.pack(
                chance.choice("<>") + "H", chance.choice(_NUMBERS) & 0xFFFF
            )
        elif kind == 3:
            del data[start:]
        elif kind == 4:
            del data[start : start + chance.randint(1, 64)]
        elif kind == 5:
            data[start:start] = data[start : start + chance.randint(1, 256)] * chance.choice((1, 9))
        else:
            data[start : start + 16] = chance.randbytes(16)
    return bytes(data)


def change_value(value, chance: random.Random):
    "Plain data with another value at one place."
    place = chance.choice([place for place in places(value) if place] or [()])
    return replaced(value, place, chance.choice(_JSON_VALUES))


def change_json(data: bytes, chance: random.Random) -> bytes:
    "Another value at a place of the JSON, a place less, a line less, or bytes that are no JSON."
    lines = data.decode().splitlines()
    is_lines = len(lines) > 1 and lines[1].startswith("{") and lines[0].endswith("}")
    value = [json.loads(line) for line in lines] if is_lines else json.loads(data)
    place = chance.choice([place for place in places(value) if place] or [()])
    action = chance.randrange(4)
    if action == 0:
        return change_bytes(data, chance)
    if action == 1 and place:
        value = removed(value, place)
    elif action == 2:
        marker = "\0place\0"
        text = json.dumps(replaced(value, place, marker))
        return text.encode().replace(json.dumps(marker).encode(), chance.choice(_RAW))
    else:
        value = change_value(value, chance)
    if is_lines and isinstance(value, list):
        return "".join(json.dumps(line) + "\n" for line in value).encode()
    return json.dumps(value).encode()


def change_text(data: bytes, chance: random.Random) -> bytes:
    "Another cell, line or delimiter of a table, or changed bytes."
    lines = data.split(b"\n")
    action, row = chance.randrange(5), chance.randrange(len(lines))
    cells = lines[row].split(b",")
    if action == 0:
        return change_bytes(data, chance)
    if action == 1:
        values = [json.dumps(value).encode() for value in _JSON_VALUES] + list(_RAW) + [b'"', b"\0"]
        cells[chance.randrange(len(cells))] = chance.choice(values)
    elif action == 2:
        del cells[chance.randrange(len(cells))]
    elif action == 3:
        cells *= chance.choice((2, 50))
    else:
        lines.insert(row, lines[chance.randrange(len(lines))])
    lines[row] = b",".join(cells)
    return b"\n".join(lines)


def change_checkpoint(data: bytes, chance: random.Random) -> bytes:
    "A checkpoint changed in its tree or its bytes; three in four times its digest is right again."
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    action = chance.randrange(4)
    if action == 0:
        return change_bytes(data, chance)
    metadata = header["__metadata__"]
    if action == 1:
        header = change_value(header, chance)
    else:
        tree = change_value(json.loads(metadata["tree"]), chance)
        metadata["tree"] = json.dumps(tree, separators=(",", ":"))
    try:
        header["__metadata__"]["sha256"] = "0" * 64
    except (TypeError, KeyError):
        return change_bytes(data, chance)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + body
    digest = hashlib.sha256(whole).hexdigest().encode()
    return whole.replace(b"0" * 64, digest, 1)


Mutation = Callable[[bytes, random.Random], bytes]
