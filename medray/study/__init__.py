"""Study: one YAML file, typed, frozen, with one way to change it.

`import medray.study` pulls in neither ray nor torch. `study.override({"train.learning_rate": 3e-4})` is the only way
to change a study: the command line's `--set`, a tuning trial and a site's differences all go through it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, ValidationError

from medray import plugins
from medray.errors import StudyError
from medray.models import Model
from medray.plugins import Config
from medray.readers import Reader
from medray.schema import FrozenDict, freeze
from medray.study.consistency import inconsistencies
from medray.study.digest import essence
from medray.study.sections import (
    ClassMap,
    Cohort,
    Compute,
    Evaluate,
    Governance,
    Serve,
    Split,
    Target,
    Task,
    Train,
    Tune,
)
from medray.study.written import implied, set_path, thaw

__all__ = [
    "ClassMap",
    "Cohort",
    "Compute",
    "Evaluate",
    "Governance",
    "Serve",
    "Split",
    "Study",
    "Target",
    "Task",
    "Train",
    "Tune",
]


class Study(Config):
    """One study: everything that decides a result, and nothing else."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    seed: int = 0
    sources: Annotated[FrozenDict, plugins.mapping_of("readers")]
    cohort: Cohort
    modalities: Annotated[FrozenDict, plugins.mapping_of("modalities")]
    model: Annotated[Model, plugins.of("models")]
    train: Train = Train()
    compute: Compute = Compute()
    tune: Tune | None = None
    evaluate: Evaluate = Evaluate()
    explain: Annotated[FrozenDict, plugins.mapping_of("explainers")] = FrozenDict()
    serve: Serve = Serve()
    governance: Governance = Governance()

    _written: FrozenDict = PrivateAttr(default_factory=FrozenDict)
    _folder: Path = PrivateAttr(default_factory=Path)
    _file: str = PrivateAttr(default="study.yaml")

    @classmethod
    def load(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Study:
        """Read a study file.

        Raises:
            StudyError: the file is missing, is no YAML, or is wrong; one line a mistake.
        """
        path = Path(path)
        try:
            written = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StudyError(f"{path}: cannot be read ({error.strerror}). `medray init FOLDER` writes one.") from error
        except yaml.YAMLError as error:
            raise StudyError(f"{path}: not YAML: {str(error).replace(chr(10), ' ')}") from error
        study = cls.parse(written, path.resolve().parent, path.name)
        return study.override(overrides) if overrides else study

    @classmethod
    def parse(cls, written: Any, folder: Path, file: str = "study.yaml") -> Study:
        """A study from what a person wrote; `folder` is what relative paths start from."""
        if not isinstance(written, Mapping):
            raise StudyError(f"{file}: expected a mapping with name, sources and cohort")
        try:
            study = cls.model_validate(implied(written))
        except ValidationError as error:
            raise StudyError("\n".join(f"{file}: {line}" for line in plugins.lines(error, cls))) from error
        study._written, study._folder, study._file = freeze(written), folder, file
        wrong = list(inconsistencies(study))
        if wrong:
            raise StudyError("\n".join(f"{file}: {line}" for line in wrong))
        return study

    def override(self, changes: Mapping[str, Any]) -> Study:
        """A changed copy: dotted paths to values, checked as if they had been written in the file.

        Setting a `kind` drops the fields of the kind before it.
        """
        written = thaw(self._written)
        resolved = self.model_dump(mode="python")
        for path, value in changes.items():
            set_path(written, resolved, path.split("."), value, path)
        return Study.parse(written, self._folder, self._file)

    @property
    def folder(self) -> Path:
        """The study file's folder."""
        return self._folder

    @property
    def written(self) -> FrozenDict:
        """What the person wrote."""
        return self._written

    def root(self, source: str) -> Path:
        """The folder that a source's files lie under."""
        root = self.sources[source].root

        def variable(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise StudyError(f"{self._file}: sources.{source}.root: environment variable {match[1]} is not set")
            return os.environ[match[1]]

        return (self._folder / re.sub(r"\$\{(\w+)\}", variable, root)).resolve()

    def source_of(self, modality: str) -> str:
        """The source that a modality is read from."""
        return self.modalities[modality].of or modality

    def keyed(self, source: str, what: Literal["record", "subject"]) -> bool:
        """Whether a source names its record or its subject."""
        reader: Reader = self.sources[source]
        return (reader.record if what == "record" else reader.subject or reader.own_subject()) is not None

    def never_inputs(self) -> frozenset[str]:
        """`source.column` of everything that may never be an input: target, split, keys, times."""
        named = {self.cohort.target.column}
        if isinstance(self.cohort.split.by, str):
            named.add(self.cohort.split.by)
        for name, reader in self.sources.items():
            named |= {f"{name}.{column}" for column in reader.record_names()}
        return frozenset(named)

    def digest(self, *sections: str) -> str:
        """Sixteen hex digits over the values of these sections that differ from their defaults, and kinds' versions."""
        chosen: dict[str, Any] = {}
        for section in sections or tuple(Study.model_fields):
            value: Any = self
            for part in section.split("."):
                value = getattr(value, part)
            chosen[section] = essence(value)
        text = json.dumps(chosen, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved study as YAML."""
        resolved = json.loads(self.model_dump_json(exclude_none=True))
        return str(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
