"Seeded changes of a file: of its bytes, of the JSON in it, and with its digest made right again."

import hashlib
import json
import random
import struct
from collections.abc import Callable

from run_folders import removed, replaced

from medgan_nb.core.files import digest

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_JSON_VALUES = (
    None,
    True,
    -1,
    0,
    10**30,
    1 << 20,
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


def random_place(value, chance: random.Random) -> tuple:
    "The path of a value in plain data, by a walk from the root that may end at any value."
    place = ()
    while isinstance(value, (dict, list)) and value and (not place or chance.random() < 0.8):
        key = (
            chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        )
        place, value = (*place, key), value[key]
    return place


def change_value(value, chance: random.Random):
    "Plain data with another value at one place."
    return replaced(value, random_place(value, chance), chance.choice(_JSON_VALUES))


def change_json(data: bytes, chance: random.Random) -> bytes:
    "Another value at a place of the JSON, a place less, a line less, or bytes that are no JSON."
    lines = data.decode().splitlines()
    is_lines = len(lines) > 1 and lines[1].startswith("{") and lines[0].endswith("}")
    value = [json.loads(line) for line in lines] if is_lines else json.loads(data)
    place = random_place(value, chance)
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
    sha = hashlib.sha256(whole).hexdigest().encode()
    return whole.replace(b"0" * 64, sha, 1)


def change_card(data: bytes, chance: random.Random) -> bytes:
    "A calibration card of the cache; half of the time its digest is right again."
    kept = json.loads(data)
    if chance.random() < 0.5:
        return change_json(data, chance)
    card = change_value(kept["card"], chance)
    return json.dumps({"card": card, "sha256": digest(card)}).encode()


Mutation = Callable[[bytes, random.Random], bytes]
