"""Associations that the gateway opens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association

from app.gateway.configuration import DicomNode, Tls
from app.gateway.receiver import prepare
from app.gateway.tls import for_client

_WAIT = 30.0
"""Seconds that a node may take for an answer."""


def call(
    ae_title: str,
    node: DicomNode,
    tls: Tls | None,
    contexts: Sequence[tuple[str, str]],
    handlers: Sequence[Any] = (),
    roles: Sequence[Any] = (),
    wait: float = _WAIT,
) -> Association:
    """Open an association, which may not be established.

    Parameters
    ----------
    ae_title : str
        What the gateway is called.
    node : DicomNode
        To call.
    tls : Tls, optional
        For nodes with TLS.
    contexts : sequence of tuple of str
        Abstract and transfer syntaxes.
    handlers, roles : sequence
        Event handlers, and items of role selection.
    wait : float
        Seconds that the node may take for an answer.
    """
    entity = AE(ae_title=ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = wait
    for sop_class, syntax in contexts:
        entity.add_requested_context(sop_class, syntax)
    return entity.associate(
        node.host,
        node.port,
        ae_title=node.ae_title,
        tls_args=(for_client(tls), node.host) if node.tls and tls else None,
        evt_handlers=[(evt.EVT_CONN_OPEN, prepare), *handlers],
        ext_neg=list(roles),
    )


def status_of(status: Dataset) -> str:
    """Say with what status a request was answered."""
    return f"status {status.Status:04X}" if "Status" in status else "no answer"


def reference_to(sop_class: str, instance: str) -> Dataset:
    """Return an item of Referenced SOP Sequence (PS3.3, table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
    return item


def why_not(node: DicomNode, association: Association) -> str:
    """Say why an association was not established."""
    if association.is_rejected:
        return f"{node.name}: it rejects the gateway; are both AE titles known there?"
    return f"{node.name}: it cannot be reached, or takes nothing of this kind"
