"""The registry: versions that count up, stages that say who and when, and nothing served that nobody approved."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medray import registry
from medray.artifacts import Checkpoint, Workspace
from medray.errors import AccessError, ArtifactError, IntegrityError
from medray.governance.crypto import Keyring
from medray.metrics import Estimate
from medray.registry import Findings
from tests import checkpoints


class Evaluated:
    """What an evaluation hands to the registry."""

    def __init__(self, report: str = "feed") -> None:
        self.report = report

    def findings(self) -> Findings:
        auroc = Estimate(0.9, 0.85, 0.94, 200, 180)
        return Findings(
            report=self.report,
            verdict="It reaches an AUROC of 0.900.",
            metrics={"accuracy": auroc, "auroc": auroc},
            subjects={"train": 800, "held_out": 180},
            units={"train": 900, "held_out": 200},
            left_out={"no label": 7},
            limits=("From one hospital.",),
            parents={"scores": "ab12"},
        )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "medray", Keyring(tmp_path / "medray" / "keyring"))


def trained(workspace: Workspace, digest: str = "abc", seed: int = 0) -> Checkpoint:
    study = checkpoints.study(("labs",), workspace.root)
    return checkpoints.write_checkpoint(workspace.folder("checkpoints", digest), study, seed=seed)


def test_versions_count_up_and_the_same_checkpoint_keeps_its_own(workspace: Workspace) -> None:
    first = registry.register(workspace, trained(workspace, "one"), Evaluated())
    second = registry.register(workspace, trained(workspace, "two", seed=1), Evaluated())
    assert (str(first), str(second)) == ("small:1", "small:2")
    assert registry.register(workspace, trained(workspace, "one"), Evaluated()) == first
    assert [str(version) for version in registry.models(workspace)] == ["small:1", "small:2"]
    assert registry.find(workspace, "small") == second
    assert registry.find(workspace, "small:1") == first


def test_runs_at_the_same_time_do_not_take_the_same_number(workspace: Workspace) -> None:
    made = [trained(workspace, f"c{number}", seed=number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda each: registry.register(workspace, each), made))
    assert sorted(version.version for version in versions) == list(range(1, 9))
    assert {version.checkpoint for version in registry.models(workspace)} == {each.digest for each in made}


def test_only_what_was_evaluated_can_be_approved_and_only_what_was_approved_is_served(workspace: Workspace) -> None:
    registry.register(workspace, trained(workspace), who="pipeline")
    with pytest.raises(AccessError, match="small:1 has no report"):
        registry.approve(workspace, "small")
    registry.register(workspace, trained(workspace), Evaluated(), who="pipeline")
    with pytest.raises(AccessError, match=r"no version of 'small' is approved.*medray models approve small:1"):
        registry.find(workspace, "small", approved_only=True)
    with pytest.raises(AccessError, match="small:1 is candidate"):
        registry.find(workspace, "small:1", approved_only=True)
    approved = registry.approve(workspace, "small:1", who="Dr Ito", note="read the report")
    assert approved.stage == "approved"
    assert registry.find(workspace, "small", approved_only=True) == approved
    assert [(event.what, event.who, event.note) for event in approved.events] == [
        ("candidate", "pipeline", ""),
        ("report", "pipeline", "feed"),
        ("approved", "Dr Ito", "read the report"),
    ]
    assert registry.approve(workspace, "small:1", who="another") == approved  # approved already: nothing happened


def test_a_newer_candidate_does_not_take_the_place_of_an_approved_version(workspace: Workspace) -> None:
    registry.register(workspace, trained(workspace, "one"), Evaluated())
    registry.approve(workspace, "small")
    registry.register(workspace, trained(workspace, "two", seed=1), Evaluated())
    assert str(registry.find(workspace, "small")) == "small:2"
    assert str(registry.find(workspace, "small", approved_only=True)) == "small:1"


def test_a_retired_version_stays_retired(workspace: Workspace) -> None:
    registry.register(workspace, trained(workspace), Evaluated())
    registry.approve(workspace, "small")
    assert registry.retire(workspace, "small:1", who="Dr Ito").stage == "retired"
    with pytest.raises(AccessError, match="retired, which is for good"):
        registry.approve(workspace, "small:1")
    with pytest.raises(AccessError, match="small:1 is retired"):
        registry.find(workspace, "small:1", approved_only=True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("smal", r"no model 'smal'\. Did you mean 'small'\? Known: small\."),
        ("small:9", r"model 'small' has no version '9'\. It has: 1\."),
        ("small:../../keyring", r"has no version"),
        ("../checkpoints", r"no model '../checkpoints'"),
    ],
)
def test_an_unknown_model_is_named_with_its_nearest(workspace: Workspace, asked: str, said: str) -> None:
    with pytest.raises(ArtifactError, match="None is registered yet"):
        registry.find(workspace, asked)
    registry.register(workspace, trained(workspace))
    with pytest.raises(ArtifactError, match=said):
        registry.find(workspace, asked)


def test_weights_trained_again_are_another_version(workspace: Workspace) -> None:
    first = registry.register(workspace, trained(workspace))
    assert registry.checkpoint_of(workspace, first).digest == "abc"
    again = trained(workspace, seed=5)  # the same digest, other weights: another machine
    with pytest.raises(IntegrityError, match="small:1: its weights are not those that were registered"):
        registry.checkpoint_of(workspace, first)
    assert str(registry.register(workspace, again)) == "small:2"


def test_a_signature_says_what_to_send_and_what_comes_back(workspace: Workspace, tmp_path: Path) -> None:
    study = checkpoints.study(("labs", "films", "ecg"), tmp_path)
    checkpoint = checkpoints.write_checkpoint(workspace.folder("checkpoints", "abc"), study)
    found = registry.register(workspace, checkpoint).signature
    assert (found.task, found.target, found.classes) == ("binary", "labs.died", ("died",))
    labs = found.inputs["labs"]
    assert labs.columns == {"crp": "number", "sex": "text", "sodium": "number", "taken_at": "time"}  # not the target
    assert found.inputs["films"].shape == (1, 32, 32)
    assert found.inputs["ecg"].names == ("I", "II", "V1")


def test_a_card_is_read_by_people(workspace: Workspace) -> None:
    registry.register(workspace, trained(workspace), Evaluated())
    text = registry.approve(workspace, "small", who="Dr Ito").markdown()
    for said in (
        "# small:1",
        "Predicts labs.died (binary) for each subject from labs (table); a tabular.",
        "Stage: approved.",
        "| auroc | 0.900 (0.850 to 0.940) | — | 200 |",
        "| train | 800 | 900 |",
        "- left out: 7 (no label)",
        "crp (number)",
        "- From one hospital.",
        "- checkpoint `abc`",
        "approved by Dr Ito",
    ):
        assert said in text
    assert text.index("| auroc") < text.index("| accuracy")  # what models are compared by comes first


def test_a_version_is_whole_or_refused(workspace: Workspace) -> None:
    registry.register(workspace, trained(workspace), Evaluated())
    path = workspace.root / "models" / "small" / "1.json"
    assert "stage" not in json.loads(path.read_text(encoding="utf-8"))  # the events say it, and nothing else
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(IntegrityError, match="damaged"):
        registry.models(workspace)
