"""Seeded damage to a file's bytes, as discs, networks and people do it."""

from __future__ import annotations

import random

LENGTHS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\x01\0\0\x80")
HEAD = 2000  # bytes in which most of a format's own words stand


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """`raw` with one to twenty flips, cuts, gaps, repeats and lies about lengths, most of them in its head."""
    damaged = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        if not damaged:
            break
        place = draw.randrange(min(len(damaged), HEAD) if draw.random() < 0.6 else len(damaged))
        size = draw.randrange(1, 64)
        match draw.randrange(7):
            case 0:
                damaged[place] ^= 1 << draw.randrange(8)
            case 1:
                del damaged[place:]
            case 2:
                damaged[place : place + size // 8] = draw.randbytes(size // 8)
            case 3:
                damaged[place : place + 4] = draw.choice(LENGTHS)
            case 4:
                del damaged[place : place + size]
            case 5:
                damaged[place:place] = damaged[place : place + size]
            case _:
                damaged[place : place + 2] = draw.choice((b"\xff\xff", b"\0\0", b"99", b"-1"))
    return bytes(damaged)
