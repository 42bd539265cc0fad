"""Study: one YAML file, typed, frozen, with one way to change it.

`import medray.study` pulls in neither ray nor torch. `study.override({"train.learning_rate": 3e-4})` is the only way
to change a study: the command line's `--set`, a tuning trial and a site's differences all go through it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from medray import plugins
from medray.errors import StudyError
from medray.models import Model
from medray.plugins import Config
from medray.readers import Reader
from medray.schema import FrozenDict, freeze
from medray.study import consistency, digest, editors, written
from medray.study.sections import (
    ClassMap,
    Cohort,
    Compute,
    Evaluate,
    Explain,
    Governance,
    Serve,
    Split,
    Target,
    Task,
    Train,
    Tune,
)
from medray.study.written import settings

__all__ = [
    "ClassMap",
    "Cohort",
    "Compute",
    "Evaluate",
    "Explain",
    "Governance",
    "Serve",
    "Split",
    "Study",
    "Target",
    "Task",
    "Train",
    "Tune",
    "settings",
]


class Study(Config):
    """One study: everything that decides a result, and nothing else.

    Attributes:
        name: lower-case letters, digits and hyphens; the model is registered under it.
        seed: of training: first weights, order, augmentation, dropout.
        sources: where records come from: a reader by name. The name is that of the modality, the encoder and the field
            of the HTTP request too.
        cohort: who, what is predicted, how subjects are split.
        modalities: what the model sees, by name; unless given, every source as its reader says.
        model: what is trained: the one modality's own encoder, or a fusion of all, unless given.
        train: how.
        compute: where.
        tune: what `medray tune` searches; without it there is nothing to tune.
        evaluate: how scores are judged.
        explain: what explains a prediction.
        serve: how a model version answers.
        governance: what protects people.
    """

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
    explain: Explain = Explain()
    serve: Serve = Serve()
    governance: Governance = Governance()

    _written: FrozenDict = PrivateAttr(default_factory=FrozenDict)
    _folder: Path = PrivateAttr(default_factory=Path)
    _file: str = PrivateAttr(default="study.yaml")

    @classmethod
    def load(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Study:
        """Read a study file; `overrides` as `override` takes them.

        Raises:
            StudyError: the file is missing, is no YAML, or is wrong; one line a mistake.
        """
        path = Path(path)
        try:
            content = written.read(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StudyError(f"{path}: cannot be read ({error.strerror}). `medray init FOLDER` writes one.") from error
        except UnicodeDecodeError as error:
            raise StudyError(f"{path}: not text in UTF-8") from error
        except StudyError as error:
            raise StudyError(f"{path}: {error}") from error
        study = cls.parse(content, path.resolve().parent, path.name)
        return study.override(overrides) if overrides else study

    @classmethod
    def parse(cls, content: Any, folder: Path, file: str = "study.yaml") -> Study:
        """A study from what a person wrote; `folder` is what relative paths start from.

        Raises:
            StudyError: it is wrong; one line a mistake.
        """
        if not isinstance(content, Mapping):
            raise StudyError(f"{file}: expected a mapping with name, sources and cohort")
        content = freeze(content)
        full, wrong = written.implied(content)
        study = None
        try:
            study = cls.model_validate(full)
        except ValidationError as error:
            wrong += plugins.lines(error, cls)
        if study is not None:
            study._written, study._folder, study._file = content, folder, file
            wrong += consistency.mistakes(study)
        if study is None or wrong:
            # modalities and model need not be written: where they could not be implied, another line says why
            told = [line for line in wrong if line not in {"modalities: is missing", "model: is missing"}]
            raise StudyError("\n".join(f"{file}: {line}" for line in told or wrong))
        return study

    def override(self, changes: Mapping[str, Any]) -> Study:
        """A changed copy: dotted paths to values, checked as if they had been written in the file.

        Setting a `kind` drops the fields of the kind before it; None takes away what was written. All changes are made
        together, in no order.

        Raises:
            StudyError: a path leads nowhere, or the changed study is wrong.
        """
        try:
            content = written.changed(self, changes)
        except StudyError as error:
            raise StudyError(f"{self._file}: {error}") from error
        return Study.parse(content, self._folder, self._file)

    @property
    def folder(self) -> Path:
        """The study file's folder."""
        return self._folder

    @property
    def file(self) -> str:
        """The study file's name, with which errors begin."""
        return self._file

    @property
    def written(self) -> FrozenDict:
        """What the person wrote."""
        return self._written

    def path(self, text: str, where: str) -> Path:
        """A path as a study writes it: `${NAME}` is taken from the environment; relative to the study's folder.

        Raises:
            StudyError: the variable is not set; `where` in the study it is asked for.
        """

        def variable(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise StudyError(f"{self._file}: {where}: environment variable {match[1]} is not set")
            return os.environ[match[1]]

        return (self._folder / Path(re.sub(r"\$\{(\w+)\}", variable, text)).expanduser()).resolve()

    def root(self, source: str) -> Path:
        """The folder that a source's files lie under."""
        return self.path(self.sources[source].root, f"sources.{source}.root")

    def source_of(self, modality: str) -> str:
        """The source that a modality is read from."""
        return self.modalities[modality].of or modality

    def split_source(self) -> str:
        """The source that holds a published split, empty where there is none; a path is that of the unit's files."""
        by, unit = self.cohort.split.by, self.cohort.unit
        if by is None:
            return ""
        if isinstance(by, str):
            return by.partition(".")[0]
        return unit if unit != "subject" else self.cohort.target.column.partition(".")[0]

    def keyed(self, source: str, what: Literal["record", "subject"]) -> bool:
        """Whether a source names its record or its subject."""
        reader: Reader = self.sources[source]
        return (reader.record if what == "record" else reader.subject or reader.own_subject()) is not None

    def never_inputs(self) -> frozenset[str]:
        """`source.column` of everything that may never be an input: target, split, keys, times, under any name."""
        return frozenset(consistency.never_inputs(self))

    def digest(self, *sections: str) -> str:
        """Sixteen hex digits over the values of these sections that differ from their defaults, and kinds' versions.

        Args:
            sections: `train`, `cohort.split`; all of them unless given.
        """
        return digest.digest(self, sections or tuple(Study.model_fields))

    def to_yaml(self) -> str:
        """The resolved study as YAML, which parses to a study with the same digests."""
        return written.write(json.loads(self.model_dump_json(exclude_none=True)))

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON schema of a study file with all kinds that are installed, for editors."""
        return editors.json_schema(Study)
