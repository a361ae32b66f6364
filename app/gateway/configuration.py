"""What a site states about its network: ``gateway.yaml``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from app.outcome import UsageError
from app.settings import first_problem, read_configuration
from operators.selection_rules import ANY_SERIES, SelectionRules

AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
"""Application Entity title: up to 16 characters but backslash, without spaces around (PS3.5, 6.2)."""
Port = Annotated[int, Field(ge=1, le=65535)]
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
Seconds = Annotated[float, Field(ge=0.0, le=7 * 86400.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


_P = TypeVar("_P", bound=_Part)


class Caller(_Part):
    """Who may send.

    Parameters
    ----------
    ae_title : str
        Calling AE title.
    address : IP address, optional
        Where it must come from; anywhere by default.
    port : int, optional
        Where it listens for reports on storage commitment; without it, it may not ask for any.
    """

    ae_title: AeTitle
    address: IPv4Address | IPv6Address | None = None
    port: Port | None = None

    @model_validator(mode="after")
    def _can_be_called(self) -> Caller:
        if self.port is not None and self.address is None:
            raise ValueError("a caller with a port needs an address")
        return self


class Tls(_Part):
    """Files in PEM for TLS, with which both sides show certificates.

    Parameters
    ----------
    certificate, key : Path
        Of the gateway; the key without a password.
    authorities : Path
        Who signs the certificates of the others.
    """

    certificate: Path
    key: Path
    authorities: Path


class _Node(_Part):
    """Another system.

    Parameters
    ----------
    name : str
        For people, and in the job table.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]


class DicomNode(_Node):
    """A system that speaks DICOM upper layer.

    Parameters
    ----------
    ae_title : str
        Called AE title.
    host : str
        Name or address.
    port : int
    tls : bool
        Call it with TLS; ``host`` is then what its certificate is for.
    """

    ae_title: AeTitle
    host: Annotated[str, Field(min_length=1)]
    port: Port
    tls: bool = False


class WebNode(_Node):
    """A system that speaks DICOMweb (PS3.18).

    Parameters
    ----------
    url : str
        Of its DICOMweb service.
    user : str, optional
    password_file : Path, optional
        Holds the password of the user.
    token_file : Path, optional
        Holds a bearer token instead.
    tls : bool
        Show the certificate of the gateway, and trust its authorities alone; else, with https, those of the system.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]
    user: Annotated[str, Field(pattern=r"^[^:\s]+$")] | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    tls: bool = False

    @property
    def host(self) -> str:
        """Name or address, with the port where it is stated."""
        return urlsplit(self.url).netloc

    @model_validator(mode="after")
    def _secrets_are_used_and_kept(self) -> WebNode:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file belong together")
        if self.user is not None and self.token_file is not None:
            raise ValueError("state either a user or a token_file")
        plain = self.url.startswith("http:")
        if plain and (self.user or self.token_file) and urlsplit(self.url).hostname not in _LOOPBACK:
            raise ValueError("a password or token would be sent to where all can read it: use https")
        if plain and self.tls:
            raise ValueError("tls needs https")
        return self


class DicomDestination(DicomNode):
    """Where results go by C-STORE.

    Parameters
    ----------
    commitment : bool
        Ask for storage commitment (PS3.4, annex J): a study counts as delivered when the destination has said that it
        keeps the results.
    """

    commitment: bool = True


class WebDestination(WebNode):
    """Where results go by STOW-RS.

    Parameters
    ----------
    commitment : bool
        Look by QIDO-RS whether the results are there: a study counts as delivered when they are. DICOMweb has no
        commitment that more servers would offer.
    """

    commitment: bool = True


def _way(stated: object) -> str:
    return "web" if "url" in (stated if isinstance(stated, dict) else vars(stated)) else "dicom"


Source = Annotated[Annotated[DicomNode, Tag("dicom")] | Annotated[WebNode, Tag("web")], Discriminator(_way)]
Destination = Annotated[
    Annotated[DicomDestination, Tag("dicom")] | Annotated[WebDestination, Tag("web")], Discriminator(_way)
]


class Limits(_Part):
    """What is too much.

    Parameters
    ----------
    associations : int
        At a time.
    instance_mb : int
        Of one instance, in 10^6 bytes.
    free_disk_mb : int
        What must stay free where the spool is: else nothing is accepted.
    run_seconds : float
        That a study may take.
    runs : int
        After so many failures in a row a study waits for a person.
    send_hours : float
        After so long a study that cannot be delivered waits for a person.
    """

    associations: Annotated[int, Field(ge=1, le=1024)] = 64
    instance_mb: Annotated[int, Field(ge=1)] = 2048
    free_disk_mb: Annotated[int, Field(ge=0)] = 2048
    run_seconds: Annotated[float, Field(ge=1.0)] = 1800.0
    runs: Annotated[int, Field(ge=1)] = 3
    send_hours: Annotated[float, Field(ge=0.0)] = 72.0

    @property
    def instance_bytes(self) -> int:
        """Bytes that an instance may have."""
        return self.instance_mb * 10**6

    @property
    def free_bytes(self) -> int:
        """Bytes of the disk that must stay free."""
        return self.free_disk_mb * 10**6

    @property
    def send_seconds(self) -> float:
        """Seconds for which something is tried to be told or sent."""
        return self.send_hours * 3600.0


class Web(_Part):
    """Where the pages and figures for those who watch the gateway are; see docs/pacs.md before you leave loopback.

    Parameters
    ----------
    host : IP address
        To listen on.
    port : int
    """

    host: IPv4Address | IPv6Address = IPv4Address("127.0.0.1")
    port: Port = 8080


class GatewayConfiguration(_Part):
    """Everything of ``gateway.yaml``.

    Parameters
    ----------
    ae_title, host, port
        What the gateway is called and where it listens; by default on loopback alone.
    spool : Path
        Folder for what is received and made; holds patient data.
    callers : tuple of Caller
        Who may send; nobody else.
    destinations : tuple of DicomDestination or WebDestination
        Where the results of every study go.
    sources : tuple of DicomNode or WebNode
        Where studies can be fetched from.
    quiet_seconds : float
        A study is complete when for so long no association has sent anything of it.
    keep_days : float, optional
        A study that was delivered is deleted after so many days, unless its sender was told that it is kept; by default
        nothing is deleted.
    limits : Limits
    tls : Tls, optional
        With it, nobody is listened to without TLS.
    web : Web, optional
        With it, the gateway can be watched over HTTP.
    log : {"text", "json"}
        Lines for people, or for programs, on standard error.
    settings : dict
        Settings of the application, as in ``--set``.
    rules : SelectionRules
        Which series to read, as in ``app.yaml``; in the file it is called ``series-selection``.
    """

    ae_title: AeTitle = "COVIDCT"
    host: str = "127.0.0.1"
    port: Port = 11112
    spool: Path
    callers: tuple[Caller, ...] = Field(min_length=1)
    destinations: tuple[Destination, ...] = Field(min_length=1)
    sources: tuple[Source, ...] = ()
    quiet_seconds: Seconds = 30.0
    keep_days: Annotated[float, Field(ge=0.0)] | None = None
    limits: Limits = Field(default_factory=Limits)
    tls: Tls | None = None
    web: Web | None = None
    log: Literal["text", "json"] = "text"
    settings: dict[str, bool | int | float | str] = {}
    rules: SelectionRules = Field(ANY_SERIES, alias="series-selection")

    @model_validator(mode="after")
    def _names_differ(self) -> GatewayConfiguration:
        for kind, nodes in (("destination", self.destinations), ("source", self.sources)):
            if len({node.name for node in nodes}) < len(nodes):
                raise ValueError(f"two {kind}s have the same name")
            if self.tls is None and any(node.tls for node in nodes):
                raise ValueError(f"a {kind} with tls needs the certificate of the gateway: state tls")
        return self


def load_gateway(path: Path) -> GatewayConfiguration:
    """Read a gateway configuration; relative paths begin where it lies.

    Raises
    ------
    UsageError
        If it cannot be read, or says something unknown or wrong.
    """
    try:
        read = GatewayConfiguration.model_validate(read_configuration(path))
    except ValidationError as error:
        place, message = first_problem(error)
        raise UsageError(f"configuration {path}, {place or 'gateway'}: {message[:1].lower()}{message[1:]}") from error
    return _beside(read, path.absolute().parent)


def _beside(part: _P, folder: Path) -> _P:
    """Return a part of a configuration whose relative paths begin in a folder."""
    return part.model_copy(update={name: _placed(value, folder) for name, value in part})


def _placed(value: object, folder: Path) -> object:
    match value:
        case Path():
            return folder / value
        case _Part():
            return _beside(value, folder)
        case tuple():
            return tuple(_placed(each, folder) for each in value)
        case _:
            return value
