"""A PACS that can be searched, and sends what it is asked for, as pynetdicom makes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)


@dataclass
class Archive:
    """What it has, and where it knows others to be.

    Parameters
    ----------
    title : str
        Its AE title.
    images : list of Dataset
    ports : dict
        Where other AE titles listen on loopback.
    port : int
        Where it listens itself.
    image_search : str
        What it does where it is searched for images, not for series: "answers", "fails", "finds nothing", "hangs up".
    """

    title: str
    images: list[Dataset] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    port: int = 0
    image_search: str = "answers"

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        if asked.QueryRetrieveLevel == "IMAGE" and self.image_search != "answers":
            if self.image_search == "hangs up":
                event.assoc.abort()
            elif self.image_search == "fails":
                yield 0xA900, None
            return
        matches = {}
        for image in self.images:
            within = [
                image[element.tag] == element for element in asked if element.keyword.startswith("S") and element.value
            ]
            if all(within):
                match = Dataset()
                for element in asked:
                    match[element.tag] = image.get(element.tag, element)
                key = "SeriesInstanceUID" if asked.QueryRetrieveLevel == "SERIES" else "SOPInstanceUID"
                matches[image[key].value] = match
        yield from ((0xFF00, match) for match in matches.values())

    def move(self, event: Any) -> Iterator[Any]:
        port = self.ports.get(event.move_destination)
        if port is None:
            yield None, None
            return
        wanted = [image for image in self.images if image.SeriesInstanceUID == event.identifier.SeriesInstanceUID]
        yield "127.0.0.1", port, {"contexts": [build_context(CTImageStorage, ExplicitVRLittleEndian)]}
        yield len(wanted)
        for image in wanted:
            yield 0xFF00, image


@contextmanager
def searchable(archive: Archive) -> Iterator[Archive]:
    """Run it on a free port."""
    entity = AE(archive.title)
    for model in (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove):
        entity.add_supported_context(model)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    handlers = [(evt.EVT_C_FIND, archive.find), (evt.EVT_C_MOVE, archive.move)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        server.shutdown()
