"""Answers: any subset of a model's modalities in their own formats, a score, and what it rests on."""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as Pillow

from medray import plugins
from medray.predictor import Predictor
from medray.serve.app import Service
from medray.synthetic import Persona, personas
from tests.served import running, service

ALL = ("films", "ecg", "labs")
PREDICT = "/v1/models/films-ecg-labs/predict"
LABS = {"crp": 41.5, "sex": "F"}


@pytest.fixture(scope="module")
def person() -> Persona:
    return next(one for one in personas(20, 0) if one.has_film and one.has_signal)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, person: Persona) -> dict[str, list[Path]]:
    """One subject's files: a DICOM film, a WFDB header with its signal file."""
    folder = tmp_path_factory.mktemp("record")
    for reader in ("dicom", "wfdb"):
        plugins.find("readers", reader).synthesize(folder, [person], 0)  # type: ignore[attr-defined]
    return {"films": list(folder.glob("*.dcm")), "ecg": [next(folder.glob("*.hea")), next(folder.glob("*.dat"))]}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, httpx.Client]]:
    one = service(tmp_path_factory.mktemp("served"), *ALL)
    with running(one) as client:
        yield one, client


@pytest.fixture
def client(opened: tuple[Service, httpx.Client]) -> httpx.Client:
    return opened[1]


def form(record: dict[str, list[Path]], *names: str) -> list[tuple[str, Any]]:
    """The parts of a form: files as they are, labs as JSON."""
    files = [(name, (path.name, path.read_bytes())) for name in names for path in record.get(name, [])]
    return [*files, *([("labs", (None, json.dumps(LABS)))] if "labs" in names else [])]


def answered(client: httpx.Client, parts: list[tuple[str, Any]], explain: str = "fast") -> dict[str, Any]:
    answer = client.post(f"{PREDICT}?explain={explain}", files=parts)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_an_answer_says_what_it_rests_on_in_every_modality(client: httpx.Client, record: dict[str, list[Path]]) -> None:
    answer = answered(client, form(record, *ALL))
    assert (answer["model"], answer["version"], answer["missing"]) == ("films-ecg-labs", 3, [])
    (chance,) = answer["probability"].values()
    assert 0 < chance < 1
    assert answer["class"] == ("died" if chance >= answer["threshold"] else "not died")
    assert answer["explained"] == "died"
    assert list(answer["attributions"]) == list(ALL)

    film = answer["attributions"]["films"]
    assert film["explainer"] == "grad_cam"
    assert np.array(film["map"]).ndim == 2
    assert np.min(film["map"]) >= 0
    with Pillow.open(io.BytesIO(base64.b64decode(film["overlay"]))) as overlay:
        assert overlay.format == "PNG"
        assert np.ptp(np.asarray(overlay)) > 0

    ecg = answer["attributions"]["ecg"]
    assert {lead["name"] for lead in ecg["leads"]} == {"I", "II", "V1"}
    sizes = [abs(lead["contribution"]) for lead in ecg["leads"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(ecg["seconds"]) == len(ecg["over_time"]) == 50
    assert ecg["seconds"][0] == 0
    assert ecg["seconds"][-1] < 4  # as the model takes it
    total = sum(np.array(lead["over_time"]) for lead in ecg["leads"])
    assert total == pytest.approx(np.array(ecg["over_time"]), rel=0.01, abs=1e-4)

    labs = answer["attributions"]["labs"]["contributions"]
    sizes = [abs(one["contribution"]) for one in labs]
    assert sizes == sorted(sizes, reverse=True)
    values = {one["name"]: one.get("value") for one in labs}
    assert (values["crp"], values["sex=F"], values["sex=M"]) == (41.5, True, False)
    assert values["sodium"] is None
    assert values["sodium (missing)"] is True


@pytest.mark.parametrize("names", [names for n in (1, 2) for names in itertools.combinations(ALL, n)])
def test_any_subset_of_the_modalities_is_answered(
    client: httpx.Client, record: dict[str, list[Path]], names: tuple[str, ...]
) -> None:
    answer = answered(client, form(record, *names))
    assert answer["missing"] == [name for name in ALL if name not in names]
    assert list(answer["attributions"]) == list(names)


def test_it_is_the_score_that_the_predictor_gives(
    opened: tuple[Service, httpx.Client], record: dict[str, list[Path]]
) -> None:
    predictor: Predictor = opened[0].predictor
    rows = {
        "films": predictor.rows_from_file("films", record["films"][0]),
        "ecg": predictor.rows_from_file("ecg", record["ecg"][0]),
        "labs": predictor.rows_from_values("labs", LABS),
    }
    expected = float(predictor.predict(*predictor.encode(rows))[0, 0])
    for explain in ("none", "fast", "full"):
        answer = answered(opened[1], form(record, *ALL), explain)
        assert answer["probability"]["died"] == pytest.approx(expected, rel=1e-3)


def test_the_full_explanation_adds_the_answer_without_each_modality(
    client: httpx.Client, record: dict[str, list[Path]]
) -> None:
    answer = answered(client, form(record, "ecg", "labs"), "full")
    assert answer["attributions"]["ecg"]["explainer"] == "integrated_gradients"
    assert set(answer["without"]) == {"ecg", "labs"}
    alone = answered(client, form(record, "labs"), "none")
    assert answer["without"]["ecg"] == alone["probability"]
    assert "without" not in answered(client, form(record, "labs"), "full")  # nothing would be left
    assert {"attributions", "explained", "without"}.isdisjoint(alone)


def test_nothing_that_identifies_a_person_comes_back(
    opened: tuple[Service, httpx.Client], record: dict[str, list[Path]], person: Persona
) -> None:
    one, client = opened
    text = json.dumps(answered(client, form(record, *ALL), "full")) + json.dumps(list(one._audit.events()))
    content = b"".join(path.read_bytes() for paths in record.values() for path in paths)
    for identifier in (person.mrn, person.name, person.birth_date.replace("-", "")):
        assert identifier.encode() in content
        assert identifier not in text
    assert record["films"][0].name not in text


def test_the_example_of_the_documentation_runs(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    path = "/v1/models/{name}/predict"
    body = document["paths"][path]["post"]["requestBody"]["content"]
    example = body["application/json"]["example"]
    assert set(example) == {"labs"}
    assert client.post(PREDICT, json=example).status_code == 200
    assert set(body["multipart/form-data"]["schema"]["properties"]) == set(ALL)
    assert document["paths"][path]["post"]["security"] == [{"token": []}]
    assert document["paths"]["/healthz/live"]["get"]["security"] == []


def test_a_model_says_what_it_takes(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert client.get("/v1/models/films-ecg-labs:3").json() == model
    assert model["classes"] == ["died"]
    kinds = {name: (given["kind"], given["format"], given["suffix"]) for name, given in model["inputs"].items()}
    assert kinds == {
        "films": ("image", "dicom", ".dcm"),
        "ecg": ("signal", "wfdb", ".hea"),
        "labs": ("table", "csv", ".csv"),
    }
    assert "died" not in model["inputs"]["labs"]["columns"]


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("multiclass", {"probability", "class"}),
        ("multilabel", {"probability", "class", "threshold"}),
        ("regression", {"value"}),
    ],
)
def test_each_task_has_its_answer(tmp_path: Path, task: str, keys: set[str]) -> None:
    with running(service(tmp_path, "labs", task=task)) as client:
        answer = client.post("/v1/models/labs/predict?explain=full", json={"labs": LABS}).json()
    assert {"probability", "class", "threshold", "value"} & set(answer) == keys
    if task == "multiclass":
        assert sum(answer["probability"].values()) == pytest.approx(1, abs=0.001)
        assert answer["explained"] == answer["class"] == max(answer["probability"], key=answer["probability"].get)
    if task == "multilabel":
        assert answer["class"] == [name for name, chance in answer["probability"].items() if chance >= 0.5]
    if task == "regression":
        assert answer["explained"] == "labs.died"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_are_taken_as_they_are(tmp_path: Path, person: Persona, kind: str) -> None:
    picture = io.BytesIO()
    Pillow.fromarray((person.film(64) >> 4).astype(np.uint8)).save(picture, kind)
    with running(service(tmp_path, "films", pictures=True)) as client:
        document = client.get("/openapi.json").json()
        body = document["paths"]["/v1/models/{name}/predict"]["post"]["requestBody"]["content"]
        assert set(body) == {"multipart/form-data"}  # values cannot make a picture
        answer = client.post("/v1/models/films/predict", files={"films": ("x", picture.getvalue())}).json()
        assert list(answer["attributions"]) == ["films"]
        refused = client.post("/v1/models/films/predict", json={"films": {"width": 3}})
        assert (refused.status_code, refused.json()["field"]) == (422, "films")


def test_a_record_in_several_files_needs_all_of_them(client: httpx.Client, record: dict[str, list[Path]]) -> None:
    header, signal = form(record, "ecg")
    for parts in ([header], [signal], [signal, signal], [header, signal, *form(record, "films")[:1]]):
        renamed = [("ecg", part[1]) for part in parts]
        answer = client.post(PREDICT, files=renamed)
        assert (answer.status_code, answer.json()["field"]) == (422, "ecg")
    assert answered(client, [signal, header])["missing"] == ["films", "labs"]


def test_a_file_under_another_modality_is_refused_by_its_reader(
    client: httpx.Client, record: dict[str, list[Path]]
) -> None:
    film = record["films"][0].read_bytes()
    for name in ("ecg", "labs"):
        answer = client.post(PREDICT, files={name: ("film.dcm", film)})
        assert (answer.status_code, answer.json()["field"]) == (422, name)


def test_of_300_mutated_files_none_is_an_error_of_the_service(
    client: httpx.Client, record: dict[str, list[Path]]
) -> None:
    draw, seen = random.Random(3), set()
    for number in range(300):
        parts = []
        for name, (file, content) in form(record, ("films", "ecg")[number % 2]):
            changed = bytearray(content)
            for _ in range(draw.randint(1, 8)):
                place = draw.randrange(min(len(changed), draw.choice([512, len(changed)])))
                changed[place] = draw.randrange(256)
            parts.append((name, (file, bytes(changed[: draw.choice([len(changed), draw.randrange(len(changed))])]))))
        answer = client.post(PREDICT, files=parts)
        assert answer.status_code in {200, 422}, answer.text
        seen.add(answer.status_code)
    assert seen == {200, 422}
