"""Mutations: of bytes, JSON trees, text by tokens, zip archives, safetensors, pickles and protobuf messages."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[Random, Sequence[bytes]], bytes]

_NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
)
_TEXTS = (
    *(
        "",
        " ",
        "x",
        "dense",
        "spatial",
        "../../up",
        "/etc/passwd",
        "C:\\x",
        "a" * 5000,
        "nan",
        "inf",
        "1e999",
        "0x10",
        "%s%n",
    ),
    *(
        "\x1b[31mred\x1b]0;title\x07",
        "\u202eright",
        "::error::x",
        "##[error]x",
        "\ud800",
        "\x00",
        "é",
        "\U0001f600",
        "os:system",
    ),
    *("torchvision:resnet18", "package.module:callable", "[red]markup[/red]", "{{ 7 * 7 }}", "$(id)", "-o", "'\"`"),
)
_FLOATS = (0.0, -0.0, 0.5, -0.5, 1.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
_TOKEN = re.compile(rb"[A-Za-z0-9_.+-]+|\"[^\"\n]*\"|'[^'\n]*'|.", re.DOTALL)


def of_bytes(random: Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with a few changes to its bytes; now and then two seeds spliced."""
    content = bytearray(random.choice(seeds))
    if random.random() < 0.1:
        other = random.choice(seeds)
        content[random.randint(0, len(content)) :] = other[random.randint(0, len(other)) :]
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        _change(random, content)
    return bytes(content)


def _change(random: Random, content: bytearray) -> None:
    at = random.randint(0, len(content))
    end = min(len(content), at + random.choice((1, 2, 4, 8, 16, 64)))
    kind = random.randrange(8)
    if kind == 0 and at < len(content):
        content[at] ^= 1 << random.randrange(8)
    elif kind == 1 and at < len(content):
        content[at] = random.randrange(256)
    elif kind == 2:
        del content[at:end]
    elif kind == 3:
        content[at:at] = random.randbytes(random.choice((1, 2, 4, 8)))
    elif kind == 4:
        content[at:at] = content[at:end] * random.choice((1, 2, 10, 100))
    elif kind == 5:
        form, size = random.choice((("B", 1), ("<H", 2), ("<I", 4), ("<Q", 8), (">I", 4), (">Q", 8)))
        number = random.choice(_NUMBERS) % (1 << (8 * size))
        content[at : at + size] = struct.pack(form, number)
    elif kind == 6:
        content[at:end] = random.choice(_TEXTS).encode("utf-8", "surrogatepass")
    else:
        del content[at:]


def of_text(random: Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with tokens replaced, removed, repeated or moved, or lines of it in another order; or changed bytes."""
    if random.random() < 0.2:
        return of_bytes(random, seeds)
    tokens: list[bytes] = _TOKEN.findall(random.choice(seeds))
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(tokens) + 1)
        kind = random.randrange(6)
        if kind == 0 and at < len(tokens):
            tokens[at] = _token(random)
        elif kind == 1:
            tokens.insert(at, _token(random))
        elif kind == 2:
            del tokens[at : at + random.choice((1, 2, 5))]
        elif kind == 3:
            tokens[at:at] = tokens[at : at + random.choice((1, 5, 20))]
        elif kind == 4:
            words = [index for index, token in enumerate(tokens) if token.strip() and token.isalnum()]
            if words:
                tokens[random.choice(words)] = _token(random)
        else:
            lines = b"".join(tokens).split(b"\n")
            random.shuffle(lines)
            tokens = _TOKEN.findall(b"\n".join(lines))
    return b"".join(tokens)


def _token(random: Random) -> bytes:
    kind = random.randrange(5)
    if kind == 0:
        return str(random.choice(_NUMBERS)).encode()
    if kind == 1:
        return repr(random.choice(_FLOATS)).encode()
    if kind == 2:
        return json.dumps(random.choice(_TEXTS)).encode()
    if kind == 3:
        return random.choice(
            (b"true", b"false", b"[]", b"{}", b"[[", b"{a = 1}", b"1979-05-27", b"=", b"\n", b"'''", b'"""')
        )
    return random.choice((b"[" * 2000, b"{" * 500, b"a." * 3000 + b"a", b"9" * 5000))


def of_json(random: Random, seeds: Sequence[bytes]) -> bytes:
    """A seed as a tree with a few nodes replaced, removed, renamed, repeated or moved; or changed text."""
    if random.random() < 0.1:
        return of_bytes(random, seeds)
    try:
        tree = json.loads(random.choice(seeds))
        for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
            tree = change_tree(random, tree)
        text = json.dumps(tree)
    except (ValueError, RecursionError):  # a seed that was kept because it is none, or too deep for Python's own encoder
        return of_bytes(random, seeds)
    if random.random() < 0.02:
        text = text.replace("null", "[" * 100_000, 1)
    return text.encode()


def change_tree(random: Random, tree: Any) -> Any:
    """``tree`` with one node changed, in place where it can be."""
    places = list(_places(tree))
    if not places or random.random() < 0.02:
        return _junk(random)
    holder, key = random.choice(places)
    kind = random.randrange(7)
    if kind <= 2:
        holder[key] = _junk(random)
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, dict):
        holder[random.choice((*_TEXTS, str(key).upper(), str(key) + "s"))] = holder.pop(key)
    elif kind == 4:
        holder[key:key] = [copy.deepcopy(holder[key])] * random.choice((1, 2, 50))
    elif kind == 5:
        other, inner = random.choice(places)
        if (isinstance(other, dict) and inner in other) or (isinstance(other, list) and inner < len(other)):
            holder[key] = copy.deepcopy(other[inner])
    else:
        value = holder[key]
        if isinstance(value, bool):
            holder[key] = not value
        elif isinstance(value, int | float):
            holder[key] = random.choice((-value, value + 1, value * 1000, str(value)[:4000]))
        elif isinstance(value, str):
            holder[key] = random.choice((value + random.choice(_TEXTS), value[:-1], value.upper(), [value]))
        else:
            holder[key] = [value]
    return tree


def _places(tree: Any) -> Any:
    """Every (container, key) of a tree, without recursion."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            yield node, key
            waiting.append(node[key])


def _junk(random: Random) -> Any:
    kind = random.randrange(8)
    if kind == 0:
        return random.choice(_NUMBERS)
    if kind == 1:
        return random.choice(_FLOATS)
    if kind <= 3:
        return random.choice(_TEXTS)
    if kind == 4:
        return random.choice((None, True, False))
    if kind == 5:
        return random.choice(([], {}, [[]], {"": None}, [None], {"x": []}))
    if kind == 6:
        return [random.choice(_NUMBERS) for _ in range(random.choice((1, 2, 5, 300)))]
    deep: Any = 1
    for _ in range(random.choice((3, 60, 900))):
        deep = [deep] if random.random() < 0.5 else {"a": deep}
    return deep


def of_json_lines(random: Random, seeds: Sequence[bytes]) -> bytes:
    """Lines of JSON: one line changed as a tree, lines in another order, repeated or cut."""
    lines = random.choice(seeds).split(b"\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(lines))
        kind = random.randrange(5)
        if kind <= 2:
            lines[at] = of_json(random, [lines[at] or b"{}"])
        elif kind == 3:
            lines.insert(at, random.choice(lines))
        else:
            random.shuffle(lines)
    content = b"\n".join(lines)
    return content if random.random() < 0.9 else of_bytes(random, [content])


def of_safetensors(random: Random, seeds: Sequence[bytes]) -> bytes:
    """A file whose header is changed as JSON, with its length put right again or not; or changed bytes."""
    seed = random.choice(seeds)
    if random.random() < 0.3 or len(seed) < 8:
        return of_bytes(random, seeds)
    (length,) = struct.unpack("<Q", seed[:8])
    header, rest = seed[8 : 8 + length], seed[8 + length :]
    header = of_json(random, [header]) if random.random() < 0.9 else b"{" + b"," * random.choice((10, 100_000)) + b"}"
    told = len(header) if random.random() < 0.9 else random.choice(_NUMBERS) % (1 << 64)
    return struct.pack("<Q", told) + header + rest


def of_pickle(random: Random, seeds: Sequence[bytes]) -> bytes:
    """Opcodes of a pickle put in, taken out, repeated; or changed bytes."""
    content = bytearray(random.choice(seeds))
    if random.random() < 0.4:
        return of_bytes(random, [bytes(content)])
    places = _opcode_places(bytes(content)) or [0]
    for _ in range(random.choice((1, 2, 4))):
        at, kind = min(random.choice(places), len(content)), random.randrange(4)
        if kind == 0:
            content[at:at] = random.choice(pickletools.opcodes).code.encode("latin-1") + _argument(random)
        elif kind == 1:
            end = random.choice(places)
            content[at:at] = content[min(at, end) : max(at, end)][:2000] * random.choice((1, 3, 40))
        elif kind == 2:
            end = next((place for place in places if place > at), len(content))
            del content[at:end]
        else:
            # What doubles with every step: ((a, a), (a, a)), as a key.
            content[at:at] = b"K\x01" + b"2\x86" * random.choice((5, 30, 60)) + random.choice((b"", b"}N", b"\x8f"))
    return bytes(content)


def _opcode_places(content: bytes) -> list[int]:
    places: list[int] = []
    try:
        for _, _, position in pickletools.genops(content):
            if position is not None:
                places.append(position)
    except Exception:  # a damaged one still has its beginning
        pass
    return places


def _argument(random: Random) -> bytes:
    kind = random.randrange(4)
    if kind == 0:
        return b""
    if kind == 1:
        return random.choice((b"builtins\nprint\n", b"os\nsystem\n", b"torch._utils\n_rebuild_tensor_v2\n", b"5\n", b"x\n"))
    if kind == 2:
        return struct.pack("<I", random.choice(_NUMBERS) % (1 << 32)) + b"abc"
    return random.randbytes(random.choice((1, 2, 4, 8)))


def of_zip(inner: Mutation) -> Mutation:
    """Archives one of whose members is changed by ``inner``, or its name, or which lie about their sizes."""

    def mutate(random: Random, seeds: Sequence[bytes]) -> bytes:
        seed = random.choice(seeds)
        if random.random() < 0.25:
            return of_bytes(random, [seed])
        try:
            with zipfile.ZipFile(io.BytesIO(seed)) as archive:
                members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        except Exception:  # a seed that was kept because it is damaged
            return of_bytes(random, [seed])
        if not members:
            return of_bytes(random, [seed])
        at = random.randrange(len(members))
        name, content = members[at]
        kind = random.randrange(6)
        if kind <= 3:
            members[at] = name, inner(random, [content])
        elif kind == 4:
            members[at] = random.choice((*_TEXTS, name + "x", "code/" + name)) or "x", content
        else:
            members.insert(at, random.choice(members))
        stream = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, content in members:
                try:
                    archive.writestr(name, content)
                except (ValueError, IndexError):  # names that zipfile itself does not write
                    archive.writestr("odd", content)
        return stream.getvalue()

    return mutate


def of_onnx(random: Random, seeds: Sequence[bytes]) -> bytes:
    """A model with fields of its messages changed, removed, repeated or taken from elsewhere; or changed bytes."""
    import onnx

    seed = random.choice(seeds)
    if random.random() < 0.25:
        return of_bytes(random, [seed])
    model = onnx.ModelProto()
    try:
        model.ParseFromString(seed)
        for _ in range(random.choice((1, 1, 2, 3, 6))):
            _change_message(random, random.choice(list(_messages(model)) or [model]))
        return model.SerializeToString()
    except Exception:  # protobuf refuses what it would not read either
        return of_bytes(random, [seed])


def _messages(message: Any) -> Any:
    waiting = [message]
    while waiting:
        node = waiting.pop()
        yield node
        for field, value in node.ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting += [value] if hasattr(value, "ListFields") else list(value)


def _change_message(random: Random, message: Any) -> None:
    fields = list(message.DESCRIPTOR.fields)
    filled = [field for field, _ in message.ListFields()]
    field = random.choice(filled if filled and random.random() < 0.8 else fields)
    value = getattr(message, field.name)
    repeated = not isinstance(value, str | bytes | int | float) and not hasattr(value, "ListFields")
    if random.random() < 0.15:
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        if repeated and len(value):
            kind = random.randrange(3)
            if kind == 0:
                value.add().CopyFrom(random.choice(value))
            elif kind == 1:
                del value[random.randrange(len(value))]
            else:
                first, second = random.choice(value), random.choice(value)
                kept = copy.deepcopy(first)
                first.CopyFrom(second)
                second.CopyFrom(kept)
        elif repeated:
            value.add()
        else:
            value.SetInParent()
    elif repeated:
        new = _scalar(random, field)
        if len(value) and random.random() < 0.7:
            value[random.randrange(len(value))] = new
        else:
            value.extend([new] * random.choice((1, 2, 30)))
    else:
        setattr(message, field.name, _scalar(random, field))


def _scalar(random: Random, field: Any) -> Any:
    if field.type == field.TYPE_STRING:
        return (
            random.choice((*_TEXTS, "Conv", "MatMul", "If", "Loop", "Constant", "x", "y", "w"))
            .encode("utf-8", "replace")
            .decode()
        )
    if field.type == field.TYPE_BYTES:
        return random.randbytes(random.choice((0, 1, 4, 64)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return random.choice(_FLOATS)
    if field.type == field.TYPE_ENUM:
        return random.choice([value.number for value in field.enum_type.values])
    number = random.choice(_NUMBERS)
    bits = 32 if field.type in (field.TYPE_INT32, field.TYPE_UINT32) else 64
    return max(-(1 << (bits - 1)), min(number, (1 << (bits - 1)) - 1))
