"""What a site states about its network: ``gateway.yaml``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.outcome import UsageError
from app.settings import first_problem, read_configuration
from operators.selection_rules import ANY_SERIES, SelectionRules

AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
"""Application Entity title: up to 16 characters but backslash, without spaces around (PS3.5, 6.2)."""
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0.0, le=7 * 86400.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Caller(_Part):
    """Who may send.

    Parameters
    ----------
    ae_title : str
        Calling AE title.
    address : IP address, optional
        Where it must come from; anywhere by default.
    """

    ae_title: AeTitle
    address: IPv4Address | IPv6Address | None = None


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


class Destination(_Part):
    """Where results go, by C-STORE.

    Parameters
    ----------
    name : str
        For people, and in the job table.
    ae_title : str
        Called AE title.
    host : str
        Name or address.
    port : int
    commitment : bool
        Ask for storage commitment (PS3.4, annex J): a study counts as delivered when the destination has said that it
        keeps the results.
    tls : bool
        Call it with TLS; ``host`` is then what its certificate is for.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]
    ae_title: AeTitle
    host: Annotated[str, Field(min_length=1)]
    port: Port
    commitment: bool = True
    tls: bool = False


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
    destinations : tuple of Destination
        Where the results of every study go.
    quiet_seconds : float
        A study is complete when for so long no association has sent anything of it.
    limits : Limits
    tls : Tls, optional
        With it, nobody is listened to without TLS.
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
    quiet_seconds: Seconds = 30.0
    limits: Limits = Field(default_factory=Limits)
    tls: Tls | None = None
    log: Literal["text", "json"] = "text"
    settings: dict[str, bool | int | float | str] = {}
    rules: SelectionRules = Field(ANY_SERIES, alias="series-selection")

    @model_validator(mode="after")
    def _names_differ(self) -> GatewayConfiguration:
        names = [destination.name for destination in self.destinations]
        if len(set(names)) < len(names):
            raise ValueError("two destinations have the same name")
        if self.tls is None and any(destination.tls for destination in self.destinations):
            raise ValueError("a destination with tls needs the certificate of the gateway: state tls")
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
    beside = path.absolute().parent
    tls = read.tls and Tls(**{name: beside / file for name, file in read.tls})
    return read.model_copy(update={"spool": beside / read.spool, "tls": tls})
