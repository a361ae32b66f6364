"""The bill of materials: in CycloneDX 1.6, in SPDX 2.3, and as a table with the texts of all licences.

Two bills of one installation are the same, but for the time that the environment variable ``SOURCE_DATE_EPOCH`` gives.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from license_expression import ExpressionError, Licensing, get_spdx_licensing
from license_expression import LicenseExpression as Expression
from spdx_tools.spdx.model import (
    Actor,
    ActorType,
    Checksum,
    ChecksumAlgorithm,
    CreationInfo,
    Document,
    ExternalPackageRef,
    ExternalPackageRefCategory,
    Package,
    PackagePurpose,
    Relationship,
    RelationshipType,
    SpdxNoAssertion,
)
from spdx_tools.spdx.writer.json.json_writer import write_document_to_file

from app.outcome import RunFailed, UsageError
from app.package.parts import Part, installed_parts
from models.record import ModelUnavailable
from operators.software import NAME, RESEARCH_NOTICE, VERSION

_NAMESPACE = uuid.UUID("0d3c1a52-6a6e-4c52-9f0e-5f1d5d1d7c11")


def write_bill(models: Path, folder: Path) -> int:
    """Write ``sbom.cdx.json``, ``sbom.spdx.json``, ``licenses.csv`` and ``licenses/`` of this installation.

    Parameters
    ----------
    models : Path
        Holds the model folders.
    folder : Path
        Made where absent.

    Returns
    -------
    int
        How many parts there are.

    Raises
    ------
    RunFailed
        If a model is missing or altered.
    UsageError
        If ``folder`` cannot be written.
    """
    try:
        parts = installed_parts(models)
    except ModelUnavailable as error:
        raise RunFailed(str(error)) from error
    created = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or datetime.now().timestamp()), UTC)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sbom.cdx.json").write_text(cyclonedx(parts, created) + "\n", "utf-8")
        write_document_to_file(spdx(parts, created), str(folder / "sbom.spdx.json"), validate=True)
        _write_licences(parts, folder)
    except OSError as error:
        raise UsageError(f"cannot write the bill of materials to {folder}: {error.strerror}") from error
    return len(parts)


def cyclonedx(parts: Sequence[Part], created: datetime) -> str:
    """Write the bill as CycloneDX 1.6 JSON."""
    kind = ComponentType.APPLICATION
    whole = Component(type=kind, name=NAME, version=VERSION, bom_ref=NAME, description=RESEARCH_NOTICE)
    components = [_component(part) for part in parts]
    bom = Bom(components=components, serial_number=_identity(parts))
    bom.metadata.component = whole
    bom.metadata.timestamp = created
    bom.dependencies.add(Dependency(whole.bom_ref, [Dependency(each.bom_ref) for each in components]))
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _component(part: Part) -> Component:
    expression = _spdx_expression(part.licence)
    licences: list[License] = []
    if expression is not None:
        licences = [LicenseExpression(str(expression))]
    elif part.licence:
        licences = [LicenseFactory().make_with_name(part.licence)]
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL if part.kind == "model" else ComponentType.LIBRARY,
        name=part.name,
        version=part.version,
        bom_ref=_reference(part),
        licenses=licences,
        purl=part.purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)] if part.sha256 else (),
    )


def spdx(parts: Sequence[Part], created: datetime) -> Document:
    """Make the bill as SPDX 2.3 document."""
    namespace = f"urn:uuid:{_identity(parts)}"
    creator = Actor(ActorType.TOOL, f"{NAME}-{VERSION}")
    whole = Package(
        "SPDXRef-whole",
        NAME,
        SpdxNoAssertion(),
        version=VERSION,
        files_analyzed=False,
        license_declared=_spdx_expression("Apache-2.0"),
        comment=RESEARCH_NOTICE,
        primary_package_purpose=PackagePurpose.APPLICATION,
    )
    packages = [_package(part) for part in parts]
    relationships = [Relationship("SPDXRef-DOCUMENT", RelationshipType.DESCRIBES, whole.spdx_id)]
    relationships += [Relationship(whole.spdx_id, RelationshipType.CONTAINS, each.spdx_id) for each in packages]
    moment = created.replace(tzinfo=None)  # the library writes UTC
    creation = CreationInfo("SPDX-2.3", "SPDXRef-DOCUMENT", f"{NAME} {VERSION}", namespace, [creator], moment)
    return Document(creation, [whole, *packages], relationships=relationships)


def _package(part: Part) -> Package:
    references = []
    if part.purl is not None:
        category = ExternalPackageRefCategory.PACKAGE_MANAGER
        references = [ExternalPackageRef(category, "purl", part.purl.to_string())]
    declared = _spdx_expression(part.licence)
    return Package(
        f"SPDXRef-{re.sub(r'[^A-Za-z0-9.-]+', '-', _reference(part))}",
        part.name,
        SpdxNoAssertion(),
        version=part.version,
        files_analyzed=False,
        checksums=[Checksum(ChecksumAlgorithm.SHA256, part.sha256)] if part.sha256 else [],
        license_declared=SpdxNoAssertion() if declared is None else declared,
        license_comment=f"stated as: {part.licence}" if part.licence else None,
        external_references=references,
        primary_package_purpose=PackagePurpose.OTHER if part.kind == "model" else PackagePurpose.LIBRARY,
    )


def _spdx_expression(licence: str) -> Expression | None:
    """Read an SPDX licence expression; None where it is none."""
    try:
        expression: Expression | None = _licensing().parse(licence, validate=True)
    except ExpressionError:
        return None
    return expression


@cache
def _licensing() -> Licensing:
    return get_spdx_licensing()


def _reference(part: Part) -> str:
    return f"{part.kind}-{_name(part)}"


def _name(part: Part) -> str:
    return "-".join(each for each in (part.name, part.version, part.architecture) if each)


def _identity(parts: Sequence[Part]) -> uuid.UUID:
    """One installation, one identity, whenever its bill is written."""
    lines = [f"{_reference(part)} {part.licence} {part.sha256}" for part in parts]
    return uuid.uuid5(_NAMESPACE, "\n".join([NAME, VERSION, *lines]))


def _write_licences(parts: Sequence[Part], folder: Path) -> None:
    texts = folder / "licenses"
    shutil.rmtree(texts, ignore_errors=True)
    with (folder / "licenses.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("kind", "name", "version", "licence", "texts"))
        for part in parts:
            target = texts / part.kind / _name(part)
            table.writerow((part.kind, part.name, part.version, part.licence, _copy_texts(part, target)))


def _copy_texts(part: Part, target: Path) -> int:
    """Copy the texts of a licence; return how many there are."""
    if not part.texts and not part.text:
        return 0
    target.mkdir(parents=True)
    for number, path in enumerate(part.texts):
        name = path.name if number == 0 else f"{number + 1:03d}_{path.name}"
        shutil.copyfile(path, target / name)
    if part.text:
        (target / "license.txt").write_text(part.text + "\n", "utf-8")
    return len(part.texts) + bool(part.text)
