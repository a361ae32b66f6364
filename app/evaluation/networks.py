"""The networks of a models folder that may hold only some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.outcome import UsageError
from models.classifier.network import Classifier
from models.involvement.network import InvolvementNetwork
from models.lesions.network import LesionNetwork
from models.lungs.network import DeepMedic
from models.record import ModelUnavailable
from models.runtime import HeavyNetwork, choose
from models.threads import use_granted_cores
from operators.findings import Lungs
from operators.lung_segmentation import segment_lungs
from operators.volume import CTVolume


@dataclass(frozen=True, slots=True)
class Networks:
    """Those that there are; the classifier needs the lesion network."""

    lungs: DeepMedic | None
    lesions: LesionNetwork | None
    involvement: InvolvementNetwork | None
    classifier: Classifier | None

    @classmethod
    def load(cls, folder: Path, *, lungs: bool = True) -> Networks:
        """Load what a models folder holds.

        Parameters
        ----------
        folder : Path
        lungs : bool
            The lung network is needed; else it is left out.

        Raises
        ------
        UsageError
            If it is missing, or a model is altered.
        """
        use_granted_cores()
        runtime = choose()

        def optional(task: str, build: Callable[..., HeavyNetwork]) -> HeavyNetwork | None:
            return runtime.load(folder / task, build)[0] if (folder / task).exists() else None

        try:
            lesions = optional("lesions", LesionNetwork)
            classifier = optional("classifier", Classifier) if lesions is not None else None
            involvement = optional("involvement", InvolvementNetwork)
            lung_network = runtime.load(folder / "lungs", DeepMedic)[0] if lungs else None
            return cls(lung_network, lesions, involvement, classifier)
        except ModelUnavailable as error:
            raise UsageError(str(error)) from error

    @property
    def tasks(self) -> list[str]:
        """Names of those that there are."""
        return [*self.segmenting, *(["classifier"] if self.classifier is not None else [])]

    @property
    def segmenting(self) -> list[str]:
        """Names of those that segment."""
        return [task for task in ("lungs", "lesions", "involvement") if getattr(self, task) is not None]

    def find_lungs(self, volume: CTVolume) -> Lungs:
        """Segment the lungs with the lung network, which must be loaded.

        Raises
        ------
        InputRefused
            If none are found.
        """
        assert self.lungs is not None  # noqa: S101 - else nobody asks
        return segment_lungs(volume, self.lungs)
