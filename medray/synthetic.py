"""Personas: invented patients with planted, documented causes, which several readers write down as one hospital.

A persona draws its own film and its own ECG, so that every reader that writes images or signals writes the same ones.

Three independent causes raise the odds of death, one in each modality, so that no modality alone can tell:

- film: a bright round spot in the lung field (`film_cause`), its place in `spot`;
- signal: a depressed ST segment in the lateral leads V4 to V6, I and aVL (`signal_cause`);
- table: raised C-reactive protein and lactate (`table_cause`).
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BASE_LOG_ODDS = -2.5  # with CAUSE_LOG_ODDS and CAUSE_RATE this gives a prevalence near one half
CAUSE_LOG_ODDS = 4.0
CAUSE_RATE = 0.28

FILM_SIZE = 192  # pixels a side
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LATERAL = ("I", "aVL", "V4", "V5", "V6")

_FAMILY = ("Abara", "Bianchi", "Castro", "Dvorak", "Eriksen", "Fontaine", "Grigoriou", "Haddad", "Ito", "Jansen")
_GIVEN = ("Ada", "Bela", "Chidi", "Dora", "Emre", "Fay", "Goran", "Hana", "Ivo", "June")


@dataclass(frozen=True)
class Persona:
    """One invented patient.

    Attributes:
        spot: centre (row, column) and radius of the planted spot, as fractions of the film's size.
        film_cause, signal_cause, table_cause: 1.0 where the cause is planted, else 0.0.
        has_film, has_signal, has_table: which modalities were recorded.
    """

    mrn: str
    name: str
    birth_date: str
    sex: str
    age: int
    recorded_at: str
    died: bool
    film_cause: float
    signal_cause: float
    table_cause: float
    spot: tuple[float, float, float]
    has_film: bool = True
    has_signal: bool = True
    has_table: bool = True

    def film(self, size: int = FILM_SIZE, seed: int = 0) -> Array:
        """The chest film: (size, size) uint16 of 12 bits, bone bright, with the spot where the cause is planted."""
        return _film(self, size, _draw("film", seed, self.mrn))

    def ecg(self, rate_hz: int = 100, seconds: int = 10, seed: int = 0) -> Array:
        """The 12-lead ECG in mV: (T, 12) float32, leads as in `LEADS`, with the ST segment where the cause puts it."""
        return _ecg(self, rate_hz, seconds, _draw("ecg", seed, self.mrn))


def personas(count: int, seed: int, missing: float = 0.06) -> list[Persona]:
    """`count` personas; the film or the signal of a share `missing` was never recorded (the table holds the target)."""
    draw = random.Random(f"personas {seed}")  # noqa: S311 - synthetic data, not a secret
    start = datetime(2024, 1, 1, 6, tzinfo=UTC)
    made = []
    for number in range(count):
        causes = [float(draw.random() < CAUSE_RATE) for _ in range(3)]
        log_odds = BASE_LOG_ODDS + CAUSE_LOG_ODDS * sum(causes)
        died = draw.random() < 1 / (1 + math.exp(-log_odds))
        age = draw.randint(35, 88)
        recorded_at = start + timedelta(minutes=draw.randrange(60 * 24 * 365))
        side = draw.choice((0.30, 0.70))  # left or right lung
        made.append(
            Persona(
                mrn=f"MRN{700000 + number * 13 + draw.randrange(13)}",
                name=f"{draw.choice(_FAMILY)}^{draw.choice(_GIVEN)}",
                birth_date=f"{2024 - age}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}",
                sex=draw.choice("FM"),
                age=age,
                recorded_at=recorded_at.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00"),
                died=died,
                film_cause=causes[0],
                signal_cause=causes[1],
                table_cause=causes[2],
                spot=(draw.uniform(0.30, 0.65), side + draw.uniform(-0.06, 0.06), 0.10),
                has_film=draw.random() >= missing,
                has_signal=draw.random() >= missing,
            )
        )
    return made


def _draw(what: str, seed: int, mrn: str) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng([seed, zlib.crc32(f"{what} {mrn}".encode())])


def _film(persona: Persona, size: int, draw: np.random.Generator) -> Array:
    """What the beam leaves: air dark, lungs dark gray, heart and belly light, bone lighter; grays of 0 to 4095."""
    import numpy as np

    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    # each chest is of its own size, sits at its own place, a little turned
    # .tolist(), float(): a float64 of numpy would make every image float64
    wide, high, right, down, turn = draw.normal((1, 1, 0, 0, 0), (0.05, 0.05, 0.012, 0.015, 0.03)).tolist()
    across, along = (line[None] - 0.5 - right) / wide, (line[:, None] - 0.48 - down) / high
    x, y = across + turn * along, along - turn * across

    body = _inside(x, 0.47 + 0.06 * y, 0.02) * _inside(y - 0.2, 0.64, 0.03)
    lungs = sum(
        _inside(np.hypot((x - side * 0.205) / 0.165, (y + 0.01) / (0.34 - 0.3 * side * x)), 1.0, 0.06)
        for side in (-1, 1)
    )
    belly = _inside(-(y - 0.27 - float(draw.normal(0, 0.015)) - 0.9 * (np.abs(x) - 0.2) ** 2), 0.0, 0.012)
    lungs = lungs * (1 - belly)
    heart_size = float(draw.normal(1, 0.12))
    heart = _inside(np.hypot((x - 0.055) / (0.135 * heart_size), (y - 0.15) / (0.15 * heart_size)), 1.0, 0.05)
    middle = _inside(np.abs(x), 0.055, 0.012)
    spine = _inside(np.abs(x), 0.035, 0.006) * (0.6 + 0.4 * np.sin(y * 85 + float(draw.uniform(0, 6))))

    film = 150 + 2250 * body - float(draw.normal(1450, 120)) * lungs
    film += float(draw.normal(1100, 120)) * heart * (0.35 + 0.65 * lungs) + 900 * middle * lungs + 350 * spine * body
    film += 250 * belly * body
    cage = _inside(np.abs(x), 0.40, 0.02) * body
    spacing, first, slope = draw.normal((0.083, -0.34, 0.55), (0.003, 0.02, 0.06)).tolist()
    for rib in range(8):
        behind = y - first - rib * spacing - slope * (np.abs(x) - 0.1) ** 2 * 2.2
        front = y - first - 0.09 - rib * spacing + 0.35 * (np.abs(x) - 0.32)
        film += cage * (260 * _ridge(behind, 0.011) + 130 * _ridge(front, 0.013) * (np.abs(x) > 0.08))
    film += 420 * body * _ridge(y + 0.335 - 0.25 * (np.abs(x) - 0.2), 0.013) * (np.abs(x) > 0.04)  # collar bones

    hila = np.exp(-((np.abs(x) - 0.12) ** 2) / 0.009 - (y - 0.02) ** 2 / 0.03)
    film += lungs * (170 * hila + 130 * (0.4 + hila) * _clouds(size, 28, draw)) + 110 * body * _clouds(size, 7, draw)

    plain_x, plain_y = line[None], line[:, None]
    for _ in range(draw.integers(0, 4)):  # dots much smaller than the spot: buttons, end-on vessels, old scars
        row, column, height, radius = draw.uniform((0.2, 0.15, 250, 0.008), (0.8, 0.85, 600, 0.016)).tolist()
        film += height * _inside(np.hypot(plain_x - column, plain_y - row), radius, 0.004)
    if persona.film_cause:
        row, column, radius = persona.spot
        height = float(draw.uniform(1600, 2000))
        film += height * _inside(np.hypot(plain_x - column, plain_y - row), 0.85 * radius, 0.12 * radius)
    # the side marker, of lead: the brightest thing on the film tells nothing
    film += 3000 * _inside(np.abs(plain_x - 0.91), 0.018, 0.003) * _inside(np.abs(plain_y - 0.08), 0.03, 0.003)

    film = 2048 + (film - 2048) * float(draw.normal(1, 0.06)) + float(draw.normal(0, 80))
    film += (25 + 0.6 * np.sqrt(np.maximum(film, 0))) * draw.standard_normal(film.shape, np.float32)
    drawn: Array = np.clip(np.rint(film), 0, 4095).astype(np.uint16)
    return drawn


def _inside(distance: Array, limit: Any, softness: float) -> Array:
    """1 where `distance` is below `limit`, 0 beyond, with a soft edge."""
    import numpy as np

    inside: Array = 1 / (1 + np.exp(np.clip((distance - limit) / softness, -30, 30)))
    return inside


def _ridge(distance: Array, width: float) -> Array:
    import numpy as np

    ridge: Array = np.exp(-((distance / width) ** 2))
    return ridge


def _clouds(size: int, fields: int, draw: np.random.Generator) -> Array:
    """Smooth noise of unit variance, about `fields` clouds across.

    Interpolated without a matrix product: on busy cores the threads of one cost 200 ms a film.
    """
    clouds: Array = draw.standard_normal((fields, fields)).astype("float32")
    low, share, norm = _between(size, fields)
    for _ in range(2):
        clouds = (norm * ((1 - share) * clouds[low] + share * clouds[low + 1])).T
    return clouds


@cache
def _between(size: int, fields: int) -> tuple[Array, Array, Array]:
    """For each place the field below, how far it is to the next, and what keeps the variance."""
    import numpy as np

    place = np.linspace(0, fields - 1, size, dtype=np.float32)
    low = np.minimum(place.astype(int), fields - 2)
    share = (place - low.astype(np.float32))[:, None]
    return low, share, 1 / np.sqrt((1 - share) ** 2 + share**2)


# Height in mV, place and width in s from the R peak, of the waves of one beat, in the two limb leads from which the
# other four follow (Einthoven 1913, Goldberger 1942), and in the six chest leads.
_WAVES: dict[str, tuple[float, float, Sequence[float]]] = {
    #     place  width   I      II     V1     V2    V3    V4    V5    V6
    "P": (-0.16, 0.022, (0.08, 0.12, 0.05, 0.06, 0.06, 0.07, 0.07, 0.06)),
    "Q": (-0.03, 0.010, (-0.06, -0.08, 0.0, 0.0, 0.0, -0.04, -0.08, -0.08)),
    "R": (0.0, 0.013, (0.70, 1.10, 0.18, 0.35, 0.70, 1.30, 1.25, 1.00)),
    "S": (0.03, 0.012, (-0.12, -0.18, -0.85, -1.20, -0.75, -0.40, -0.20, -0.10)),
    "T": (0.26, 0.050, (0.20, 0.28, -0.04, 0.35, 0.38, 0.36, 0.30, 0.24)),
}
_DRAWN = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def _ecg(persona: Persona, rate_hz: int, seconds: int, draw: np.random.Generator) -> Array:
    import numpy as np

    count = rate_hz * seconds
    time = np.arange(count) / rate_hz
    mean_rr = 60 / draw.uniform(55, 100)
    rr = np.clip(draw.normal(mean_rr, 0.04 * mean_rr, size=int(seconds / mean_rr) + 6), 0.35, 2.0)
    beats = draw.uniform(-1.0, 0.0) + np.cumsum(rr)
    beats = beats[beats < seconds + 0.5]
    since = time[:, None] - beats  # s from each R peak, (T, beats)

    drawn = np.zeros((count, len(_DRAWN)))
    person = draw.normal(1, 0.12)  # size and axis of the heart
    for place, width, heights in _WAVES.values():
        moved = place * (mean_rr / 0.85) ** 0.5 if place > 0.1 or place < -0.1 else place  # Bazett 1920
        shape = np.exp(-(((since - moved) / draw.normal(width, 0.05 * width)) ** 2) / 2).sum(1)
        drawn += shape[:, None] * np.array(heights) * person * draw.normal(1, 0.12, size=len(heights))
    # the ST segment: a plateau from 60 to 190 ms after the R peak
    until = 0.19 * (mean_rr / 0.85) ** 0.5
    plateau = (_inside(since, until, 0.012) * (1 - _inside(since, 0.065, 0.008))).sum(1)
    depressed = np.array([lead in LATERAL for lead in _DRAWN])
    depth = draw.normal(0, 0.03, size=len(_DRAWN)) - persona.signal_cause * depressed * draw.uniform(0.18, 0.30)
    drawn += plateau[:, None] * depth

    one, two = drawn[:, 0], drawn[:, 1]
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    leads = np.column_stack([*limbs, drawn[:, 2:]])
    phase, speed = draw.uniform(0, 2 * math.pi, size=12), draw.uniform(0.15, 0.35)  # breathing moves the baseline
    leads += draw.uniform(0.02, 0.10) * np.sin(2 * math.pi * speed * time[:, None] + phase)
    leads += draw.uniform(0.008, 0.025) * draw.standard_normal(leads.shape)  # muscles
    ecg: Array = leads.astype(np.float32)
    return ecg
