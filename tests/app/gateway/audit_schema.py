"""What an audit message must be by PS3.15, read from the schema (A.5.1.1) and the tables (A.5.3), without our code."""

from __future__ import annotations

import re
from base64 import b64decode
from datetime import datetime
from xml.etree.ElementTree import Element

CODED = {"csd-code", "codeSystemName", "originalText"}
NETWORK = {"NetworkAccessPointID", "NetworkAccessPointTypeCode"}
# by element: attributes that must be there, those that may, and the children, each with a space
SCHEMA: dict[str, tuple[set[str], set[str], str]] = {
    "AuditMessage": (
        set(),
        set(),
        "EventIdentification (ActiveParticipant )+AuditSourceIdentification (ParticipantObjectIdentification )*",
    ),
    "EventIdentification": (
        {"EventDateTime", "EventOutcomeIndicator"},
        {"EventActionCode"},
        "EventID (EventTypeCode )*(EventOutcomeDescription )?",
    ),
    "EventID": (CODED, {"displayName"}, ""),
    "EventTypeCode": (CODED, {"displayName"}, ""),
    "EventOutcomeDescription": (set(), set(), ""),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", *NETWORK},
        "(RoleIDCode )*(MediaIdentifier )?",
    ),
    "RoleIDCode": (CODED, {"displayName"}, ""),
    "AuditSourceIdentification": ({"AuditSourceID"}, {"AuditEnterpriseSiteID"}, "(AuditSourceTypeCode )*"),
    "AuditSourceTypeCode": ({"csd-code"}, CODED | {"displayName"}, ""),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {
            "ParticipantObjectTypeCode",
            "ParticipantObjectTypeCodeRole",
            "ParticipantObjectDataLifeCycle",
            "ParticipantObjectSensitivity",
        },
        "ParticipantObjectIDTypeCode (ParticipantObjectName |ParticipantObjectQuery )"
        "(ParticipantObjectDetail )*(ParticipantObjectDescription )*",
    ),
    "ParticipantObjectIDTypeCode": (CODED, {"displayName"}, ""),
    "ParticipantObjectName": (set(), set(), ""),
    "ParticipantObjectDetail": ({"type", "value"}, set(), ""),
    "ParticipantObjectDescription": (
        set(),
        set(),
        "(MPPS )*(Accession )*(SOPClass )*(ParticipantObjectContainsStudy )?(Encrypted )?(Anonymized )?",
    ),
    "SOPClass": ({"NumberOfInstances"}, {"UID"}, "(Instance )*"),
}
VALUES = {
    "EventActionCode": {"C", "R", "U", "D", "E"},
    "EventOutcomeIndicator": {"0", "4", "8", "12"},
    "UserIsRequestor": {"true", "false"},
    "NetworkAccessPointTypeCode": {"1", "2", "3", "4", "5"},
    "ParticipantObjectTypeCode": {"1", "2", "3", "4"},
    "ParticipantObjectTypeCodeRole": {str(role) for role in range(1, 27)},
}
STUDY = ("2", "3", ("110180", "DCM", "Study Instance UID"))
PATIENT = ("1", "1", ("2", "RFC-3881", "Patient Number"))
NODE = ("2", "13", ("110182", "DCM", "Node ID"))
SOURCE, DESTINATION = "110153", "110152"
# by event: its meaning, the actions that it may have, the roles that must be there, the objects, whether it has a type
TABLES: dict[str, tuple[str, set[str], list[str], list[object], bool]] = {
    "110100": ("Application Activity", {"E"}, ["110150"], [], True),
    "110102": ("Begin Transferring DICOM Instances", {"E"}, [DESTINATION, SOURCE], [STUDY, PATIENT], False),
    "110103": ("DICOM Instances Accessed", {"C", "R", "U", "D"}, [], [STUDY, PATIENT], False),
    "110104": ("DICOM Instances Transferred", {"C", "R", "U"}, [DESTINATION, SOURCE], [STUDY, PATIENT], False),
    "110105": ("DICOM Study Deleted", {"D"}, [], [STUDY, PATIENT], False),
    "110113": ("Security Alert", {"E"}, [], [NODE], True),
}


def code(element: Element) -> tuple[str, str, str]:
    return element.attrib["csd-code"], element.attrib["codeSystemName"], element.attrib["originalText"]


def roles(message: Element) -> list[str]:
    return sorted(role.attrib["csd-code"] for role in message.iter("RoleIDCode"))


def check(message: Element) -> None:
    """Assert all that the schema and the tables demand."""
    assert message.tag == "AuditMessage"
    for element in message.iter():
        needed, allowed, children = SCHEMA[element.tag]
        assert needed <= set(element.attrib) <= needed | allowed, element.tag
        assert re.fullmatch(children, "".join(f"{child.tag} " for child in element)), element.tag
        for name, value in element.attrib.items():
            assert value in VALUES.get(name, {value}), name
    _check_event(message)
    _check_participants(message)


def _check_event(message: Element) -> None:
    event = message[0]
    value, scheme, meaning = code(event[0])
    expected, actions, needed, objects, typed = TABLES[value]
    assert (scheme, meaning) == ("DCM", expected)
    assert event.attrib["EventActionCode"] in actions
    assert datetime.fromisoformat(event.attrib["EventDateTime"]).tzinfo is not None
    assert (event.find("EventTypeCode") is not None) == typed
    assert roles(message) == sorted(needed)
    stated = [
        (each.get("ParticipantObjectTypeCode"), each.get("ParticipantObjectTypeCodeRole"), code(each[0]))
        for each in message.iter("ParticipantObjectIdentification")
    ]
    assert stated == objects
    if value == "110113":
        (detail,) = message.iter("ParticipantObjectDetail")
        assert detail.attrib["type"] == "Alert Description"
        assert b64decode(detail.attrib["value"], validate=True).decode()


def _check_participants(message: Element) -> None:
    participants = message.findall("ActiveParticipant")
    assert sum(each.attrib["UserIsRequestor"] == "true" for each in participants) <= 1
    for each in participants:
        assert each.attrib.keys() >= NETWORK or not NETWORK & each.attrib.keys()
        if any(role.attrib["csd-code"] == "110150" for role in each):
            assert each.attrib["AlternativeUserID"].startswith("AETITLES=")
