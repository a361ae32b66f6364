"""A study that nobody has sent is fetched: by C-FIND and C-MOVE, or by QIDO-RS and WADO-RS."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from app.gateway.configuration import DicomNode, GatewayConfiguration, WebNode
from app.gateway.dicomweb import Unreachable, web_client
from app.gateway.events import Event, Kind, Peer, Tell
from app.gateway.header import file_head
from app.gateway.jobs import Jobs, State
from app.gateway.receiver import ACCEPTED_CLASSES, ACCEPTED_SYNTAXES, PLAIN
from app.gateway.scu import call, status_of, why_not
from app.gateway.spool import FETCHED, Arrival, Refused, Spool, checked_uid
from app.outcome import Interrupted, RunFailed, UsageError

_PENDING = (0xFF00, 0xFF01)
"""Statuses of C-FIND and C-MOVE (PS3.4, C.4.1.1.4 and C.4.2.1.5)."""
_FIRST_GROUP = 0x0008
"""Of a data set; those before are of messages and of files (PS3.5, 7.1)."""
_MOVE_WAIT = 600.0
"""Seconds between two answers of a source that moves a series; it may have to take it from a tape first."""


def fetch(configuration: GatewayConfiguration, spool: Spool, jobs: Jobs, name: str, study: str, tell: Tell) -> None:
    """Have the CT series of a study come from a source; the gateway does the rest.

    Parameters
    ----------
    configuration : GatewayConfiguration
    spool, jobs
        Of the gateway, which must be running for a source that has no DICOMweb.
    name : str
        Of the source.
    study : str
        Study Instance UID.
    tell : callable
        Receives what happens.

    Raises
    ------
    UsageError
        If the source or the study is not known, or the gateway does not run.
    RunFailed
        If not all of it came. By DICOMweb all or nothing is kept.
    """
    source = next((each for each in configuration.sources if each.name == name), None)
    if source is None:
        known = ", ".join(each.name for each in configuration.sources) or "none"
        raise UsageError(f"there is no source {name}; configured: {known}")
    try:
        checked_uid(study)
    except Refused:
        raise UsageError("the study is no valid UID") from None
    tell(Event(Kind.FETCHED, f"asked {source.name} for it", study, Peer(source.name, source.host)))
    try:
        if isinstance(source, WebNode):
            _by_web(configuration, source, spool, jobs, study, tell)
        else:
            _by_move(configuration, source, study, tell)
    except Unreachable as error:
        raise RunFailed(str(error)) from error
    except Refused as refusal:
        raise RunFailed(f"it was not kept: {refusal}") from refusal


def _none(source: DicomNode | WebNode) -> UsageError:
    return UsageError(f"{source.name} has no CT series of this study")


# --- C-FIND and C-MOVE ---


def _by_move(configuration: GatewayConfiguration, source: DicomNode, study: str, tell: Tell) -> None:
    if not _running(configuration):
        raise UsageError("the gateway does not run, and has to receive what comes: start it first")
    with _associated(configuration, source) as association:
        series = _ct_series(association, source, study)
    if not series:
        raise _none(source)
    with _associated(configuration, source) as association:
        came = 0
        for each in series:
            came += _move(association, configuration.ae_title, source, study, each)
            tell(Event(Kind.PROGRESS, f"{source.name} has sent {came} instances", study))


def _running(configuration: GatewayConfiguration) -> bool:
    """Say whether a gateway has the spool."""
    try:
        with (configuration.spool / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextmanager
def _associated(configuration: GatewayConfiguration, source: DicomNode) -> Iterator[Association]:
    models = (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove)
    contexts = [(model, syntax) for model in models for syntax in PLAIN]
    association = call(configuration.ae_title, source, configuration.tls, contexts, wait=_MOVE_WAIT)
    if not association.is_established:
        raise Unreachable(why_not(source, association))
    try:
        yield association
    except (RuntimeError, ValueError) as error:
        raise Unreachable(f"{source.name}: it can neither be searched nor does it move studies") from error
    except Interrupted:  # as long as it moves a series, it would not answer that the association is to end
        association.abort()
        raise
    finally:
        association.release()


def _ct_series(association: Association, source: DicomNode, study: str) -> list[str]:
    """Return the series of a study that hold CT images.

    Of modality CT there are pictures, too, such as our own: the gateway does not take them. Where the source does not
    say of which class its images are, they may be any.
    """
    within = {"StudyInstanceUID": study}
    found = _found(association, source, {"QueryRetrieveLevel": "SERIES"} | within, ("SeriesInstanceUID", "Modality"))
    series = [str(each.SeriesInstanceUID) for each in found if each.get("Modality") == "CT"]
    return [each for each in series if _may_hold_ct(association, source, within | {"SeriesInstanceUID": each})]


def _may_hold_ct(association: Association, source: DicomNode, within: Mapping[str, str]) -> bool:
    try:
        images = _found(
            association, source, {"QueryRetrieveLevel": "IMAGE", **within}, ("SOPInstanceUID", "SOPClassUID")
        )
    except (Unreachable, RuntimeError):  # not everybody can be searched for images; some hang up
        return True
    classes = {str(image.get("SOPClassUID") or "") for image in images}
    return not classes or "" in classes or not classes.isdisjoint(ACCEPTED_CLASSES)


def _found(association: Association, source: DicomNode, query: Mapping[str, str], keys: Sequence[str]) -> list[Dataset]:
    """Return what a source knows that meets a query, each with its values of the keys (PS3.4, C.6.2.1)."""
    identifier = Dataset()
    for keyword, value in (dict.fromkeys(keys) | dict(query)).items():
        setattr(identifier, keyword, value)
    found = []
    for status, match in association.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind):
        if status.get("Status") in _PENDING and match is not None:
            found.append(match)
        elif status.get("Status") != 0x0000:
            raise Unreachable(f"{source.name}: the search ended with {status_of(status)}")
    return found


def _move(association: Association, title: str, source: DicomNode, study: str, series: str) -> int:
    """Have a series sent to the gateway; return how many instances came."""
    request = Dataset()
    request.QueryRetrieveLevel, request.StudyInstanceUID, request.SeriesInstanceUID = "SERIES", study, series
    answers = association.send_c_move(request, title, StudyRootQueryRetrieveInformationModelMove)
    *_, (status, _) = [(Dataset(), None), *answers]
    failed = int(status.get("NumberOfFailedSuboperations") or 0)
    if status.get("Status") != 0x0000 or failed:
        raise Unreachable(
            f"{source.name}: it moved a series with {status_of(status)}, {failed} instances failed;"
            f" does it know {title}, and is it among the callers?"
        )
    return int(status.get("NumberOfCompletedSuboperations") or 0)


# --- QIDO-RS and WADO-RS ---


def _by_web(
    configuration: GatewayConfiguration, source: WebNode, spool: Spool, jobs: Jobs, study: str, tell: Tell
) -> None:
    with ExitStack() as stack:
        stack.enter_context(spool.fetching())
        arrivals: dict[str, Arrival] = {}
        with web_client(source, configuration.tls) as client:
            found = _instances(client, study)
            if not found:
                raise _none(source)
            for number, (instance, (series, _)) in enumerate(found.items(), 1):
                spool.check_room()
                arrivals[instance] = stack.enter_context(closing(spool.begin(FETCHED)))
                _download(client, source, arrivals[instance], (study, series, instance))
                if number % 50 == 0:
                    tell(Event(Kind.PROGRESS, f"{number} of {len(found)} instances", study))
        kept = _keep(spool, jobs, study, source.name, arrivals)
    classes = Counter(found[instance][1] for instance in kept)
    message = f"received {len(kept)} instances; {len(found) - len(kept)} were there"
    tell(Event(Kind.RECEIVED, message, study, Peer(source.name, source.host), classes))


def _instances(client: DICOMwebClient, study: str) -> Mapping[str, tuple[str, str]]:
    """Return series and SOP class of each CT instance of a study (PS3.18, 10.6)."""
    found = {}
    for series in _all(client.search_for_series, study, search_filters={"Modality": "CT"}):
        if series.get("Modality") == "CT":
            for instance in _all(client.search_for_instances, study, series.SeriesInstanceUID):
                if instance.SOPClassUID in ACCEPTED_CLASSES:
                    place = str(series.SeriesInstanceUID), str(instance.SOPClassUID)
                    found[checked_uid(instance.SOPInstanceUID)] = place
    return found


def _all(search: Callable[..., list[dict[str, Any]]], *arguments: str, **keywords: object) -> list[Dataset]:
    """Return what a search finds, page after page until nothing new comes: some servers give everything each time."""
    found: dict[str, Dataset] = {}
    while True:
        page = [Dataset.from_json(each) for each in search(*arguments, offset=len(found), **keywords)]
        new = {str(each.get("SOPInstanceUID") or each.SeriesInstanceUID): each for each in page}
        if new.keys() <= found.keys():
            return list(found.values())
        found |= new


def _download(client: DICOMwebClient, source: WebNode, arrival: Arrival, uids: tuple[str, str, str]) -> None:
    """Retrieve an instance in the transfer syntax in which it is stored there (PS3.18, 10.4)."""
    image = client.retrieve_instance(*uids, media_types=(("application/dicom", "*"),))
    if (str(image.StudyInstanceUID), str(image.SOPInstanceUID)) != (uids[0], uids[2]):
        raise Unreachable(f"{source.name}: it gave another instance than was asked for")
    syntax = image.file_meta.TransferSyntaxUID
    if syntax not in ACCEPTED_SYNTAXES:
        raise Unreachable(f"{source.name}: it gives instances in a transfer syntax that cannot be read")
    if any(tag.group < _FIRST_GROUP for tag in image.keys()):  # noqa: SIM118 - its iterator gives elements
        raise Unreachable(f"{source.name}: it gives instances with elements that no data set may have")
    arrival.write(file_head(str(image.SOPClassUID), str(image.SOPInstanceUID), str(syntax)))
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
    write_dataset(buffer, image)
    arrival.write(buffer.getvalue())
    arrival.end()


def _keep(spool: Spool, jobs: Jobs, study: str, caller: str, arrivals: Mapping[str, Arrival]) -> list[str]:
    """Keep what is not there yet; return which. Nothing happens with the study before all of it is kept."""
    with spool.alone():
        known = jobs.knows(study)
        new = {uid: each for uid, each in arrivals.items() if not (spool.holds(study, uid, each) and known)}
        if new and not jobs.receive(study, caller, time.time(), State.FETCHING):
            raise Refused(0, "its study is being deleted")
        try:
            for uid, arrival in new.items():
                spool.keep(study, uid, arrival)
        except Refused:
            jobs.fetched(study, time.time(), "only a part of it could be kept; fetch it again, or drop it")
            raise
        jobs.fetched(study, time.time())  # also if nothing is new: a fetch before may not have come so far
    return list(new)
