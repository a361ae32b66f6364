"""``result.json``: what a run found, or why it refused the input. The schema is part of the interface."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from app.publish import METADATA, RESULT, objects_in
from app.settings import Settings
from operators.findings import Classification
from operators.identity import ModelSet
from operators.measurements import Measurements
from operators.refusal import InputRefused, ReasonCode
from operators.relevance_summary import RelevanceSummary
from operators.remarks import Remark, RemarkCode
from operators.software import NAME, RESEARCH_NOTICE, VERSION
from operators.volume import CTVolume

_MERCURE = "__mercure_notification"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Software(_Part):
    """What made the results."""

    name: str = NAME
    version: str = VERSION


class Model(_Part):
    """Identity of one model: its weights, and what its network is built with."""

    name: str
    version: str
    sha256: Sha256
    settings: dict[str, Any]


class OutputFile(_Part):
    """A written file; ``path`` is relative to the output folder."""

    path: str
    sha256: Sha256
    bytes: int


class Notification(_Part):
    """What mercure tells people when it has processed a study.

    Parameters
    ----------
    text : str
        One line without patient data.
    requested : bool
        Whether someone should look: of a positive or refused study.
    """

    text: str
    requested: bool


class _Result(_Part):
    status: str
    reason_codes: list[ReasonCode]
    message: str
    notice: str = RESEARCH_NOTICE
    software: Software = Software()
    settings: dict[str, bool | float | int | str | None]
    notification: Notification = Field(
        validation_alias=AliasChoices(_MERCURE, "notification"), serialization_alias=_MERCURE
    )

    def write(self, folder: Path) -> None:
        """Write ``result.json`` and ``metadata.json`` into ``folder``."""
        metadata = json.dumps(self.metadata, indent=2, ensure_ascii=False)
        (folder / METADATA).write_text(metadata + "\n", "utf-8")
        (folder / RESULT).write_text(self.model_dump_json(indent=2, by_alias=True) + "\n", "utf-8")

    @property
    def metadata(self) -> dict[str, str | float | None]:
        """Single values, on which the MONAI Deploy Workflow Manager can decide what to do with a study."""
        return {
            "status": self.status,
            "reason_codes": " ".join(self.reason_codes),
            "message": self.message,
            "notice": self.notice,
            "software": f"{self.software.name} {self.software.version}",
        }


class RefusedResult(_Result):
    """The input cannot be processed; there are no other outputs."""

    status: Literal["refused"] = "refused"
    reason_codes: list[ReasonCode] = Field(min_length=1)

    @classmethod
    def of(cls, refusal: InputRefused, settings: Settings) -> Self:
        """Say why the input was refused."""
        return cls(
            message=refusal.message,
            reason_codes=[refusal.code],
            settings=settings.model_dump(),
            notification=Notification(text=f"Refused: {refusal.code}: {refusal.message}", requested=True),
        )


class StudyOutcome(_Part):
    """What became of one study of a folder; ``folder`` is relative to the output folder.

    Of a study that failed, or was not begun, it holds what an earlier run has left, if anything.
    """

    folder: str
    status: Literal["completed", "refused", "failed"]
    reason_codes: list[ReasonCode] = []


class FolderResult(_Result):
    """A folder of several studies was processed; each study has its own results.

    ``failed`` says that one of them, at least, has none for a reason that does not lie in it.
    """

    status: Literal["completed", "partly_refused", "refused", "failed"]
    studies: list[StudyOutcome]

    @classmethod
    def of(cls, studies: Sequence[StudyOutcome], settings: Settings) -> Self:
        """List what became of the studies."""
        refused = [study for study in studies if study.status == "refused"]
        codes = dict.fromkeys(code for study in refused for code in study.reason_codes)
        done = sum(study.status == "completed" for study in studies)
        failed = done + len(refused) < len(studies)
        message = f"{done} of {len(studies)} studies were processed"
        return cls(
            status="failed" if failed else "completed" if not refused else "partly_refused" if done else "refused",
            message=message,
            reason_codes=list(codes),
            studies=list(studies),
            settings=settings.model_dump(),
            notification=Notification(text=message, requested=failed or bool(refused)),
        )


class StatedRemark(_Part):
    """What was repaired in the input, or makes the results less certain."""

    code: RemarkCode
    message: str


class CompletedResult(_Result):
    """The study was processed and every output written.

    Parameters
    ----------
    reason_codes : list
        Empty.
    study_uid, series_uid : str
        Of the source images.
    remarks : list of StatedRemark
        Repairs of the input and doubts about the results.
    models : dict
        Identity of the weights by task: lungs, lesions, involvement, classifier.
    probability : float
        Probability of COVID-19, 0 to 1.
    decision : str
        ``positive`` where the probability is at or above ``threshold``.
    measurements : Measurements
        Volumes in ml, percentages of the lung, mean attenuation in HU; in total, left and right.
    relevance : RelevanceSummary
        What the heatmaps show.
    seconds : dict
        Wall-clock seconds of each node.
    files : list of OutputFile
        Everything written but ``result.json`` and ``metadata.json``.
    """

    status: Literal["completed"] = "completed"
    reason_codes: list[ReasonCode] = Field(default=[], max_length=0)
    study_uid: str
    series_uid: str
    remarks: list[StatedRemark]
    models: dict[str, Model]
    probability: float
    decision: Literal["positive", "negative"]
    threshold: float
    measurements: Measurements
    relevance: RelevanceSummary
    seconds: dict[str, float]
    files: list[OutputFile]

    @classmethod
    def of(
        cls,
        volume: CTVolume,
        measurements: Measurements,
        classification: Classification,
        relevance: RelevanceSummary,
        remarks: Sequence[Remark],
        *,
        models: ModelSet,
        settings: Settings,
        seconds: dict[str, float],
        folder: Path,
    ) -> Self:
        """Put together what was found; ``folder`` holds the written files."""
        decision: Literal["positive", "negative"] = "positive" if classification.positive else "negative"
        message = f"COVID-19 {decision}, probability {classification.probability:.2f}"
        return cls(
            message=message,
            settings=settings.model_dump(),
            notification=Notification(text=f"{message}. {RESEARCH_NOTICE}", requested=classification.positive),
            study_uid=volume.study_uid,
            series_uid=volume.series_uid,
            remarks=[StatedRemark(code=remark.code, message=remark.message) for remark in remarks],
            models={field.name: _model(models, field.name) for field in fields(models)},
            probability=classification.probability,
            decision=decision,
            threshold=classification.threshold,
            measurements=measurements,
            relevance=relevance,
            seconds={node: round(value, 3) for node, value in seconds.items()},
            files=list_files(folder),
        )

    @property
    def metadata(self) -> dict[str, str | float | None]:
        """As of every result, with the findings that decide what becomes of a study."""
        total = self.measurements.total
        return super().metadata | {
            "decision": self.decision,
            "probability": self.probability,
            "involvement_percent": total.involvement.percent_of_lung,
            "lesions_percent": total.all_lesions.percent_of_lung,
            "remarks": " ".join(remark.code for remark in self.remarks),
        }


def _model(models: ModelSet, task: str) -> Model:
    record = getattr(models, task)
    return Model(name=record.name, version=record.version, sha256=record.sha256, settings=json.loads(record.settings))


def list_files(folder: Path) -> list[OutputFile]:
    """Name, hash and size of every object in ``folder``, in order of their paths."""
    return [
        OutputFile(
            path=path.relative_to(folder).as_posix(),
            sha256=hashlib.sha256(content := path.read_bytes()).hexdigest(),
            bytes=len(content),
        )
        for path in objects_in(folder)
    ]
