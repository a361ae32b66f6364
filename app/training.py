"""``covid-ct train``: the recipes of the shipped weights, from a manifest of CT studies to a model folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from app.console import tell
from app.outcome import UsageError

if TYPE_CHECKING:
    from torch import nn

    from models.training.loop import LoopSettings

    Network = TypeVar("Network", bound=nn.Module)

MODELS = ("lungs", "involvement", "lesions", "classifier")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command; nothing heavy is imported."""
    parser.add_argument("model", choices=MODELS, help="what to train; lesions and classifier need involvement before")
    parser.add_argument("--manifest", type=Path, required=True, help="YAML file that lists the studies")
    parser.add_argument("--cache", type=Path, required=True, help="folder for prepared volumes and checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="folder of the models; MODEL/ in it is written")
    parser.add_argument("--start", type=Path, help="models folder whose weights training goes on from, not classifier")
    parser.add_argument("--steps", type=int, help="optimiser steps (epochs for the classifier) instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other weights (default 0)")
    parser.set_defaults(command=train)


def train(arguments: argparse.Namespace) -> None:
    """Train one model and write its folder.

    Raises
    ------
    UsageError
        If the manifest cannot be used.
    """
    recipes: dict[str, Callable[[argparse.Namespace], None]] = {
        "lungs": _train_lungs,
        "involvement": _train_involvement,
        "lesions": _train_lesions,
        "classifier": _train_classifier,
    }
    arguments.cache.mkdir(parents=True, exist_ok=True)
    recipes[arguments.model](arguments)


def _save(arguments: argparse.Namespace, network: nn.Module) -> None:
    """Write the weights; name, version and description stay as the metadata in the output folder say."""
    from models.record import METADATA
    from models.store import save_weights

    folder = arguments.output / arguments.model
    shipped = Path(__file__).resolve().parent.parent / "models" / arguments.model / METADATA
    own = folder / METADATA
    metadata = json.loads((own if own.exists() else shipped).read_text("utf-8"))
    record = save_weights(folder, network, metadata)
    tell(f"{folder}: {record.name} {record.version}, sha256 {record.sha256}")


def _settings(arguments: argparse.Namespace, defaults: LoopSettings) -> LoopSettings:
    """Return the settings of a run, and seed the weights of the network that is made next."""
    import torch

    torch.manual_seed(arguments.seed)
    return replace(defaults, seed=arguments.seed, steps=arguments.steps or defaults.steps)


def _started(arguments: argparse.Namespace, network: Network) -> Network:
    """Return the network with the weights to start from, where the user names some.

    Raises
    ------
    UsageError
        If they are not there or do not fit.
    """
    from models.record import ModelUnavailable
    from models.store import load_weights

    if arguments.start is not None:
        try:
            load_weights(arguments.start / arguments.model, network)
        except ModelUnavailable as error:
            raise UsageError(str(error)) from error
    return network


def _train_lungs(arguments: argparse.Namespace) -> None:
    """DeepMedic on reference masks, healthy lungs also with lesions inserted that the mask takes in."""
    from app.training_data import load_sources, with_lesions
    from models.lungs.network import DeepMedic
    from models.lungs.training import DEFAULTS, train
    from models.training.patterns import MIXED, SEVERE

    settings = _settings(arguments, DEFAULTS)
    network = _started(arguments, DeepMedic())
    sources = []
    for entry, source in load_sources(arguments.manifest, arguments.cache, tell):
        variants = with_lesions(source, [MIXED, MIXED, SEVERE, SEVERE, SEVERE], arguments.seed) if entry.healthy else []
        sources += [source, *variants]
    _save(arguments, train(network, sources, tell, settings, arguments.cache / "lungs.checkpoint.safetensors"))


def _train_involvement(arguments: argparse.Namespace) -> None:
    """2DS on inserted lesions and annotated slices; then it labels the diseased studies, which it has not seen."""
    from app.training_data import (
        infected_slices,
        label_lesions,
        load_annotated_slices,
        load_sources,
        read_manifest,
        with_lesions,
    )
    from models.involvement.network import involvement_network
    from models.involvement.training import DEFAULTS, train
    from models.training.patterns import MIXED, SEVERE

    settings = _settings(arguments, DEFAULTS)
    network = _started(arguments, involvement_network())
    manifest = read_manifest(arguments.manifest)
    slices = load_annotated_slices(manifest.annotated_slices) if manifest.annotated_slices else None
    loaded = load_sources(arguments.manifest, arguments.cache, tell)
    healthy = [source for entry, source in loaded if entry.healthy]
    sources = [v for s in healthy for v in [s, *with_lesions(s, [MIXED] * 6 + [SEVERE], arguments.seed)]]
    checkpoint = arguments.cache / "involvement.checkpoint.safetensors"
    trained = train(network, sources, slices, tell, settings, checkpoint).eval()
    _save(arguments, trained)
    for entry, source in loaded:
        if not entry.healthy:
            infected = infected_slices(manifest, entry, source.hu.shape[0])
            label_lesions(source, trained, infected, arguments.cache)
            tell(f"{entry.name}: lesions labelled")


def _train_lesions(arguments: argparse.Namespace) -> None:
    """3D U-Net on inserted lesions, and on diseased lungs as 2DS labelled them."""
    from app.training_data import load_sources, with_labels, with_lesions
    from models.lesions.network import lesion_network
    from models.lesions.training import DEFAULTS, REAL_WEIGHT, train
    from models.training.patterns import MIXED, SEVERE

    settings = _settings(arguments, DEFAULTS)
    network = _started(arguments, lesion_network())
    sources = []
    for entry, source in load_sources(arguments.manifest, arguments.cache, tell):
        if entry.healthy:
            sources += [source, *with_lesions(source, [MIXED] * 8 + [SEVERE], arguments.seed)]
        else:
            sources += [with_labels(source, arguments.cache)] * REAL_WEIGHT
    _save(arguments, train(network, sources, tell, settings, arguments.cache / "lesions.checkpoint.safetensors"))


def _train_classifier(arguments: argparse.Namespace) -> None:
    """CVAE, then the classifier from its encoder, on real studies and on healthy lungs with lesions inserted."""
    if arguments.start is not None:
        raise UsageError("the classifier starts from its CVAE; leave --start out")
    from app.classifier_data import classifier_studies
    from models.classifier.network import Classifier
    from models.classifier.training import ClassifierSettings, CVAESettings, Progress, train_classifier, train_cvae

    def report(progress: Progress) -> None:
        held_out = "" if progress.validation_loss is None else f", validation {progress.validation_loss:.5f}"
        best = " *" if progress.best and held_out else ""
        tell(f"epoch {progress.epoch}/{progress.epochs}: loss {progress.training_loss:.5f}{held_out}{best}")

    training, validation = classifier_studies(arguments.manifest, arguments.cache, arguments.seed)
    epochs = arguments.steps or 12
    common = {"epochs": epochs, "seed": arguments.seed, "bfloat16": True, "slices_per_study": 16, "studies_per_step": 2}
    encoder = train_cvae(training, CVAESettings(**{**common, "epochs": max(epochs // 3, 1)}), report=report)
    settings = ClassifierSettings(**common, learning_rate=2e-4, patience=10)
    network = Classifier()
    network.load_state_dict(
        train_classifier(training, validation, encoder, settings, report=report, checkpoints=arguments.cache)
    )
    _save(arguments, network)
