"""Personas: invented patients with planted, documented causes, which several readers write down as one hospital.

Three independent causes raise the odds of death, one in each modality, so that no modality alone can tell:

- film: a bright round spot in the lung field (`film_cause`), its place in `spot`;
- signal: a depressed ST segment in the lateral leads V4 to V6, I and aVL (`signal_cause`);
- table: raised C-reactive protein and lactate (`table_cause`).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

BASE_LOG_ODDS = -3.0  # with CAUSE_LOG_ODDS this gives a prevalence near one half
CAUSE_LOG_ODDS = 2.5
CAUSE_RATE = 0.45

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

    patient_id: str
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
                patient_id=f"MRN{700000 + number * 13 + draw.randrange(13)}",
                name=f"{draw.choice(_FAMILY)}^{draw.choice(_GIVEN)}",
                birth_date=f"{2024 - age}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}",
                sex=draw.choice("FM"),
                age=age,
                recorded_at=recorded_at.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00"),
                died=died,
                film_cause=causes[0],
                signal_cause=causes[1],
                table_cause=causes[2],
                spot=(draw.uniform(0.30, 0.65), side + draw.uniform(-0.06, 0.06), 0.07),
                has_film=draw.random() >= missing,
                has_signal=draw.random() >= missing,
            )
        )
    return made
