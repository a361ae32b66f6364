"""Metadata of trained models in the form of a MONAI Bundle, and their model cards.

Source: MONAI Bundle specification, ``metadata.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from models.training.loop import Trained
from operators.software import NAME, RESEARCH_NOTICE, VERSION

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
PAPER = "Berenguer et al. 2020, arXiv:2011.11719"
_PACKAGES = ("pydantic", "safetensors")


@dataclass(frozen=True, slots=True)
class Description:
    """What does not depend on the training of a model.

    Parameters
    ----------
    task, description : str
    image : dict
        ``network_data_format`` of the input.
    prediction : dict
        Of the output.
    references : tuple of str
    """

    task: str
    description: str
    image: Mapping[str, object]
    prediction: Mapping[str, object]
    references: tuple[str, ...]


def _data(
    kind: str, shape: Sequence[int | str], channels: Sequence[str], values: Sequence[float], *, patch: bool
) -> dict[str, object]:
    """Describe an input or an output."""
    return {
        "type": kind,
        "format": "hounsfield" if kind == "image" else "logits",
        **({"modality": "CT"} if kind == "image" else {}),
        "num_channels": len(channels),
        "spatial_shape": list(shape),
        "dtype": "float32",
        "value_range": list(values),
        "is_patch_data": patch,
        "channel_def": {str(k): name for k, name in enumerate(channels)},
    }


_LESIONS = ("background", "ground-glass opacity", "consolidation", "crazy paving", "combined pattern")
_SLICES = ("CT masked by the lungs, HU in [-1000, 400] as [0, 1]", "lesion mask")
DESCRIPTIONS: Mapping[str, Description] = {
    "lungs": Description(
        "Lung segmentation in chest CT",
        "3D DeepMedic; both lungs",
        _data("image", ["3*n+36", "3*n+66", "3*n+66"], ["CT, HU in [-1100, 100] as [0, 1]"], [0, 1], patch=True),
        _data("probabilities", ["3*n", "3*n", "3*n"], ["lung"], [], patch=True),
        (PAPER, "Kamnitsas et al. 2017, Medical Image Analysis 36:61-78"),
    ),
    "lesions": Description(
        "Lesion segmentation by type inside the lungs",
        "3D U-Net of four levels, generalised Wasserstein Dice loss",
        _data("image", ["8*n", "8*n", "8*n"], ["CT near the lungs, HU in [-1000, 400] as [0, 1]"], [0, 1], patch=True),
        _data("probabilities", ["8*n", "8*n", "8*n"], _LESIONS, [], patch=True),
        (PAPER, "Cicek et al. 2016, arXiv:1606.06650", "Fidon et al. 2017, arXiv:1707.00478"),
    ),
    "involvement": Description(
        "Affected lung in axial slices (2DS)",
        "2D U-Net of five levels",
        _data("image", ["16*n", "16*n"], ["CT near the lungs, HU in [-1000, 400] as [0, 1]"], [0, 1], patch=True),
        _data("probabilities", ["16*n", "16*n"], ["affected lung"], [], patch=True),
        (PAPER, "Ronneberger et al. 2015, arXiv:1505.04597"),
    ),
    "cvae": Description(
        "Representation learning on slices",
        "Conditional variational autoencoder; the classifier starts from its gated encoder",
        _data("image", ["8*n", "8*n"], _SLICES, [0, 1], patch=False),
        _data("image", ["8*n", "8*n"], ["reconstructed CT"], [], patch=False),
        (PAPER,),
    ),
    "classifier": Description(
        "COVID-19 negative or positive",
        "Gated encoder, spatial pyramid pooling, NetVLAD over the slices of a study",
        _data("image", ["*", "*"], _SLICES, [0, 1], patch=False),
        _data("probabilities", [], ["negative", "positive"], [], patch=False),
        (PAPER, "Arandjelovic et al. 2016, arXiv:1511.07247"),
    ),
}


@dataclass(frozen=True, slots=True)
class Learned:
    """What a model was trained on, in words and figures that name nobody.

    Parameters
    ----------
    studies : mapping
        Rows of a table: of each split, its patients and studies, and how many are positive.
    settings : mapping
        Of the training.
    trained : Trained
        Losses of each epoch.
    """

    studies: Mapping[str, Mapping[str, int]]
    settings: Mapping[str, Any]
    trained: Trained


def bundle_metadata(task: str, model_version: str, learned: Learned) -> dict[str, object]:
    """Return the metadata of a trained model; network settings and hash are filled in with the weights."""
    about = DESCRIPTIONS[task]
    kept = learned.trained.history[learned.trained.kept_epoch - 1]
    return {
        "schema": SCHEMA,
        "name": f"covid-ct-{task}",
        "version": model_version,
        "changelog": {model_version: f"trained by {NAME} {VERSION}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],  # without its build
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in _PACKAGES},
        "task": about.task,
        "description": about.description,
        "authors": "whoever trained it; not stated",
        "copyright": "not stated",
        "intended_use": RESEARCH_NOTICE,
        "data_source": f"a cohort of {_people(learned)}",
        "data_type": "DICOM or NIfTI",
        "image_classes": "chest CT",
        "label_classes": "lungs: 1 left, 2 right; lesions: 1 to 4 as in pred_classes; label: 1 COVID-19 positive",
        "pred_classes": list(_channels(about.prediction)),
        "eval_metrics": {"validation_loss": kept["validation_loss"]},
        "references": list(about.references),
        "network_data_format": {"inputs": {"image": about.image}, "outputs": {"pred": about.prediction}},
    }


def _channels(part: Mapping[str, object]) -> Sequence[str]:
    channels = part["channel_def"]
    assert isinstance(channels, dict)  # noqa: S101 - made above
    return list(channels.values())


def _people(learned: Learned) -> str:
    patients = sum(row["patients"] for row in learned.studies.values())
    return f"{patients} patients, {sum(row['studies'] for row in learned.studies.values())} studies"


def model_card(task: str, model_version: str, learned: Learned) -> str:
    """Return the model card as Markdown: what it learned from, what is known of it, and what is not."""
    about, trained = DESCRIPTIONS[task], learned.trained
    kept = trained.history[trained.kept_epoch - 1]
    rows = [f"| {name} | {' | '.join(str(row[key]) for key in _COUNTS)} |" for name, row in learned.studies.items()]
    settings = ", ".join(f"{name} {_short(value)}" for name, value in learned.settings.items())
    lines = [
        f"# covid-ct-{task} {model_version}",
        "",
        f"{about.task}. {about.description}. {'; '.join(about.references)}.",
        "",
        f"**Intended use.** {RESEARCH_NOTICE}",
        "",
        f"**Learned from** a cohort of {_people(learned)}:",
        "",
        f"| | {' | '.join(_COUNTS.values())} |",
        f"|---|{'---|' * len(_COUNTS)}",
        *rows,
        "",
        f"**Training.** {settings}. {len(trained.history)} epochs were run; the weights are those of epoch "
        f"{trained.kept_epoch}.",
        "",
        f"**Measured.** Loss {kept['training_loss']:.4g} on training and {kept['validation_loss']:.4g} on validation "
        "data (`training.png`). That says that it has learned, not how well it does: "
        "`covid-ct evaluate` measures that on patients whom it has not seen.",
        "",
        *_calibration(task, trained),
        "**Known failures.** None were looked for. Other scanners, protocols, diseases and populations than those of "
        "the cohort are unknown territory.",
        "",
    ]
    return "\n".join(lines)


def _calibration(task: str, trained: Trained) -> list[str]:
    if not trained.calibration:
        return []
    said = ", ".join(f"{name} {value:.3g}" for name, value in trained.calibration.items())
    means = "for the largest Dice coefficient" if task == "lesions" else "its probabilities fit their prevalence alone"
    return [f"**Calibrated** on the validation data ({said}): {means}.", ""]


_COUNTS = {
    "patients": "patients",
    "studies": "studies",
    "positive": "positive",
}


def _short(value: object) -> str:
    return str(value).replace(" ", "") if isinstance(value, (list, tuple)) else str(value)
