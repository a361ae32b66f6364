"""Training recipes of the autoencoder and of the classifier.

Source: Berenguer et al. 2020, arXiv:2011.11719, section 5 (implementation details): Adam, focal loss, weight decay
and early stopping. What the paper leaves open is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.classifier.calibration import platt_scaling
from models.classifier.cvae import CVAE, PriorInputs
from models.classifier.losses import ClassFocalLoss
from models.classifier.mask_errors import with_errors
from models.classifier.network import CLASSES, Classifier
from models.classifier.start import fit_clusters, fit_output, scale_convolutions, standardise_linear
from models.classifier.studies import PreparedStudy
from models.classifier.variation import varied
from models.training.recipe import Item, Objective, Recipe, epoch_order
from models.training.settings import TrainingSettings

HALF_COVERED = 0.5
SCALING_STUDIES = 16
"""Training studies over which the first weights of the encoder are scaled."""
_SCALING_SLICES = 8
"""Slices of each of them."""
STARTING_STUDIES = 64
"""Training studies over which the first weights of the classifier are fitted."""
_AT_A_TIME = 16
"""Slices encoded at a time, which bounds memory."""
_SHOWN = 4
"""Slices in a picture of reconstructions."""


class StudySettings(TrainingSettings):
    """Training on whole studies; an epoch is a pass over all of them.

    Parameters
    ----------
    in_plane : int
        Size in pixels of the larger side of the slices.
    slices_per_study : int, optional
        A random subset at each step; None takes all.
    masks : {"found", "given"}
        Whose masks it learns from: those that the segmentation finds, or those of the cohort with the errors of a
        segmentation. It is validated on found ones always.
    augment : bool
        Vary the slices that it learns from in position, size and image quality.
    """

    in_plane: int = Field(ge=32, le=1024)
    slices_per_study: PositiveInt | None
    masks: Literal["found", "given"]
    augment: bool


class CVAESettings(StudySettings):
    """Training of the autoencoder.

    Parameters
    ----------
    size : int
        Rows and columns of the slices that it sees, a multiple of 8.
    prior : {"y", "xy", "standard_normal"}
        Inputs of the prior.
    sigma : float
        Fixed standard deviation of the generative distribution.
    side_branch : bool
        False leaves the side branch out.
    """

    size: PositiveInt = Field(multiple_of=8)
    prior: PriorInputs
    sigma: PositiveFloat
    side_branch: bool


class FocalSettings(StudySettings):
    """Training of any classifier of studies with the focal loss.

    Parameters
    ----------
    class_weights : tuple of float
        Lambda for negative and positive.
    gamma : float
        Exponent.
    calibrate : bool
        Bring the probabilities to scale on the validation studies in the end.
    """

    class_weights: tuple[PositiveFloat, PositiveFloat]
    gamma: NonNegativeFloat
    calibrate: bool


class ClassifierSettings(FocalSettings):
    """Training of the classifier.

    Parameters
    ----------
    initial : {"cvae", "random"}
        Where the weights of the encoder come from.
    output_penalty : float, optional
        On the last layer, which starts from what :func:`~models.classifier.start.fit_output` makes of the training
        studies; None leaves it random.
    output_draws : int
        How often each study is drawn for that, at least.
    side_branch : bool
        False leaves the side branch out.
    """

    initial: Literal["cvae", "random"]
    output_penalty: PositiveFloat | None
    output_draws: PositiveInt
    side_branch: bool


class CVAEObjective(Objective):
    """Negative variational lower bound of slices with the label of their study."""

    def __init__(self, network: CVAE, sigma: float) -> None:
        super().__init__(network)
        self._sigma = sigma

    def forward(self, *item: Tensor) -> Tensor:
        """Loss of slices (n, 2, size, size) with labels (n,)."""
        slices, labels = item
        loss: Tensor = self.network(slices, labels).loss(slices[:, :1], self._sigma)
        return loss


class ClassifierObjective(Objective):
    """Focal loss of one study, in units of that of a study which is undecided.

    Else its gradient is so small where little is decided yet that weight decay, which Adam divides by the same
    measure, outweighs it, and the network is decayed away.
    """

    def __init__(self, network: nn.Module, settings: FocalSettings) -> None:
        super().__init__(network)
        self._focal = ClassFocalLoss(settings.class_weights, settings.gamma)
        undecided = self._focal(torch.zeros(CLASSES, CLASSES), torch.arange(CLASSES))
        self._unit = float(undecided)

    def forward(self, *item: Tensor) -> Tensor:
        """Loss of slices (n, channels, H, W) with a label (1,)."""
        slices, label = item
        loss: Tensor = self._focal(self.network(slices).float()[None], label) / self._unit
        return loss


class StudyRecipe(Recipe):
    """Studies in a new order in each epoch, of each a random subset of its slices.

    Parameters
    ----------
    objective : Objective
    settings : StudySettings
    training, validation : sequence of PreparedStudy
        Disjoint by patient.
    channels : int
        2 for CT and lesion mask, 3 with the lung mask.
    """

    def __init__(
        self,
        objective: Objective,
        settings: StudySettings,
        training: Sequence[PreparedStudy],
        validation: Sequence[PreparedStudy],
        channels: int = 2,
    ) -> None:
        super().__init__(objective, -(-len(training) // settings.batch), len(validation))
        self._settings, self._training, self._validation = settings, training, validation
        self._channels = channels

    def __getitem__(self, number: int, /) -> Item:
        """Read a training study and draw its slices."""
        seed = self._settings.seed
        index = epoch_order(seed, number, len(self._training), self.steps * self._settings.batch)
        study, rng = self._training[index], np.random.default_rng((seed, number))
        slices = study.slices(_drawn(len(study), self._settings.slices_per_study, rng))
        if self._settings.augment:
            slices = varied(slices, rng)
        if self._settings.masks == "given":
            slices = with_errors(slices, rng)
        return self._seen(slices, study)

    def validation_item(self, index: int) -> Item:
        """Read a validation study with all its slices."""
        study = self._validation[index]
        return self._seen(study.slices(), study)

    def scale(self, encoder: nn.Module, size: int) -> None:
        """Bring the convolutions of an encoder to scale over slices of the first training studies, of a fixed size."""
        parts = (self[number][0] for number in range(min(SCALING_STUDIES, len(self._training))))
        some = (part[torch.linspace(0, len(part) - 1, _SCALING_SLICES).long()] for part in parts)
        scale_convolutions(encoder, torch.cat([resized_slices(part, size) for part in some]))

    def _seen(self, slices: Tensor, study: PreparedStudy) -> tuple[Tensor, Tensor]:
        return slices[:, : self._channels], torch.tensor([study.label])


class CVAERecipe(StudyRecipe):
    """Slices of studies at the autoencoder's fixed size.

    Parameters
    ----------
    network : CVAE
    settings : CVAESettings
    training, validation : sequence of PreparedStudy
    """

    def __init__(
        self,
        network: CVAE,
        settings: CVAESettings,
        training: Sequence[PreparedStudy],
        validation: Sequence[PreparedStudy],
    ) -> None:
        super().__init__(CVAEObjective(network, settings.sigma), settings, training, validation)
        self._size = settings.size

    def __getitem__(self, number: int, /) -> Item:
        """Read a training study and draw its slices."""
        return self._fitted(*super().__getitem__(number))

    def fit_to_data(self) -> None:
        """Bring the encoder to scale over the first studies."""
        assert isinstance(self.objective.network, CVAE)  # noqa: S101 - of this recipe
        self.scale(self.objective.network.encoder, self._size)

    def validation_item(self, index: int) -> Item:
        """Read a validation study with all its slices."""
        return self._fitted(*super().validation_item(index))

    def _fitted(self, slices: Tensor, label: Tensor) -> Item:
        return resized_slices(slices, self._size), label.expand(len(slices))

    def pictures(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Draw slices of the first validation study above their reconstructions, and what the label alone gives."""
        assert isinstance(network, CVAE)  # noqa: S101 - of this recipe
        slices, labels = self.validation_item(0)
        chosen = torch.linspace(0, len(slices) - 1, _SHOWN + 2).long()[1:-1]
        device = next(network.parameters()).device
        slices, labels = slices[chosen].to(device), labels[chosen].to(device)
        pictures = {"reconstructions": _mosaic(slices[:, :1], network(slices, labels).image)}
        if network.prior_inputs == "y":
            every = torch.arange(CLASSES, device=device).repeat_interleave(_SHOWN)
            drawn = network.decoder(network.label_prior(every).sample())
            pictures["from_label"] = _mosaic(*drawn.split(_SHOWN))
        return pictures


class ClassifierRecipe(StudyRecipe):
    """A classifier of studies; in the end its probabilities are calibrated on the validation studies.

    Parameters
    ----------
    network : nn.Module
        Gives two logits of the slices of a study; its last layer is ``output``.
    settings : FocalSettings
    training, validation : sequence of PreparedStudy
    channels : int
        2 for CT and lesion mask, 3 with the lung mask.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: FocalSettings,
        training: Sequence[PreparedStudy],
        validation: Sequence[PreparedStudy],
        *,
        channels: int = 2,
    ) -> None:
        super().__init__(ClassifierObjective(network, settings), settings, training, validation, channels)
        self._wanted = settings.calibrate

    @torch.no_grad()
    def fit_to_data(self) -> None:
        """Bring the classifier to scale over the first studies, and its clusters to where their descriptors are.

        An encoder that comes from an autoencoder stays as it is. Where it is asked for, the last layer is fitted to all
        studies.
        """
        network, settings = self.objective.network, self._settings
        if not isinstance(network, Classifier):
            return
        if isinstance(settings, ClassifierSettings) and settings.initial == "random":
            self.scale(network.encoder, settings.in_plane)
        numbers = range(min(STARTING_STUDIES, len(self._training)))
        parts = (part for number in numbers for part in torch.split(self[number][0], _AT_A_TIME))
        pooled = torch.cat([network.pyramid(network.encode(part)) for part in parts])
        if len(pooled) > 1:
            standardise_linear(network.descriptor, pooled)
            fit_clusters(network.aggregation, F.relu(network.descriptor(pooled)), self._settings.seed)
        if isinstance(settings, ClassifierSettings) and settings.output_penalty is not None:
            seen, labels = [], []
            for number in range(settings.output_draws * self.steps * settings.batch):
                slices, label = self[number]
                seen.append(network.aggregation(network.describe(slices, chunk=_AT_A_TIME)))
                labels.append(label)
            fit_output(network.output, torch.stack(seen), torch.cat(labels), settings.output_penalty)

    @torch.inference_mode()
    def calibrate(self, network: nn.Module) -> Mapping[str, float]:
        """Fold the Platt scaling of the validation studies into the last layer, where there is one."""
        if not self._wanted:
            return {}
        output, labels, logits = network.output, [], []
        assert isinstance(output, nn.Linear)  # noqa: S101 - of such a network
        for index in range(self.validation):
            slices, label = self.validation_item(index)
            labels.append(int(label))
            logits.append(network(slices.to(output.weight)).double().diff().item())
        scaling = platt_scaling(labels, logits)
        if scaling is None:
            return {}
        scaling.fold_into(output)
        return asdict(scaling)


def start_from_cvae(classifier: Classifier, cvae: CVAE) -> None:
    """Give the classifier the encoder of an autoencoder, tensor by tensor (paper, section 4.2).

    Raises
    ------
    ValueError
        If one of them has a side branch and the other has none.
    """
    if (classifier.encoder.side_branch is None) != (cvae.encoder.side_branch is None):
        raise ValueError("the classifier and its autoencoder must both have a side branch, or neither")
    classifier.encoder.load_state_dict(cvae.encoder.state_dict())


def _drawn(slices: int, count: int | None, rng: np.random.Generator) -> list[int] | None:
    """Draw which slices to take, in the order in which they lie: some networks take them for a volume."""
    return None if count is None or slices <= count else sorted(rng.permutation(slices)[:count].tolist())


def resized_slices(slices: Tensor, size: int) -> Tensor:
    """Resize slices (n, 2, H, W) to (n, 2, size, size): CT averaged, mask binary again (at least half covered)."""
    if slices.shape[-2:] == (size, size):
        return slices
    resized = F.interpolate(slices, size=(size, size), mode="bilinear", antialias=True)
    return torch.stack([resized[:, 0], (resized[:, 1] >= HALF_COVERED).to(slices.dtype)], dim=1)


def _mosaic(*rows: Tensor) -> Tensor:
    """Put images (n, 1, size, size) beside each other, and the rows below each other."""
    return torch.cat([torch.cat(list(row[:, 0]), dim=1) for row in rows]).float().clamp(0.0, 1.0).cpu()
