"""What every layer agrees on: canonical text, names of columns that identify, mappings that cannot be changed."""

from __future__ import annotations

import copy
import pickle

import pytest

from medray.schema import FrozenDict, canonical, freeze, is_identifier

IDENTIFYING = """
name PatientName patient_name patient.name last_name ReferringPhysicianName mrn MRN PatientID OtherPatientIDs subject_id
person_id patient id hadm_id AccessionNumber StudyInstanceUID zip zip_code postcode phone e-mail email PatientAddress ip
url dob birthDate date_of_birth date_of_death admission_date city county fax ssn nhs_number account_number policy_no
license_plate vehicle_id device_serial fingerprint voiceprint photo next_of_kin
"""
FINDINGS = """
age sex height weight birth_weight person_weight nurse site device serum_sodium description skip trip equip ship fluid
hip_fracture liquid squid photopheresis phosphate telemetry faxed stay los_stay valid ward insurance patient_age number
PatientSex EthnicGroup mobility mobile_xray filename_lr scp_codes death diagnosis
"""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (15709.0, "15709"),
        ("15709.0", "15709"),
        ("15709.", "15709"),
        (15709, "15709"),
        ("-3.00", "-3"),
        ("0.50", "0.50"),
        ("1.10.0", "1.10.0"),
        ("007", "007"),
        (True, "true"),
        ("True", "true"),
        ("FALSE", "false"),
        ("  person 12 \n", "person 12"),
        ("u\u0308ber", "\u00fcber"),
        ("", None),
        ("  ", None),
        (None, None),
        (float("nan"), None),
    ],
)
def test_values_that_mean_the_same_are_the_same_text(value: object, text: str | None) -> None:
    assert canonical(value) == text
    assert canonical(canonical(value)) == text


@pytest.mark.parametrize("column", IDENTIFYING.split())
def test_a_column_that_identifies_is_known_by_its_name(column: str) -> None:
    assert is_identifier(column)


@pytest.mark.parametrize("column", FINDINGS.split())
def test_a_column_of_findings_is_no_identifier(column: str) -> None:
    assert not is_identifier(column)


def test_a_frozen_mapping_refuses_every_change() -> None:
    frozen = freeze({"a": {"b": [1, {"c": 2}]}})
    for change in (
        lambda: frozen.__setitem__("a", 1),
        lambda: frozen.__delitem__("a"),
        lambda: frozen.update(a=1),
        lambda: frozen.pop("a"),
        lambda: frozen.popitem(),
        lambda: frozen.setdefault("z", 1),
        lambda: frozen.clear(),
        lambda: frozen.__ior__({"a": 1}),
        lambda: frozen["a"].update(b=1),
        lambda: frozen["a"]["b"][1].update(c=1),
    ):
        with pytest.raises(TypeError, match="a study is frozen"):
            change()
    assert frozen == {"a": {"b": (1, {"c": 2})}}


def test_equal_frozen_mappings_hash_alike() -> None:
    one, other = freeze({"a": 1, "b": [2.0]}), freeze({"b": (2,), "a": True})
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, freeze({"a": 2})}) == 2


def test_a_frozen_mapping_is_copied_and_pickled_as_itself() -> None:
    frozen = freeze({"a": {"b": [1]}})
    for again in (copy.deepcopy(frozen), copy.copy(frozen), pickle.loads(pickle.dumps(frozen))):  # noqa: S301
        assert again == frozen
        assert isinstance(again, FrozenDict)
        assert isinstance(again["a"], FrozenDict)
