"""Questions of callers whether the gateway keeps what they have sent, until they are answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from app.gateway.database import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS questions (
    transaction_uid TEXT NOT NULL, caller TEXT NOT NULL, instances TEXT NOT NULL, failures INTEGER NOT NULL,
    due REAL NOT NULL, since REAL NOT NULL, PRIMARY KEY (caller, transaction_uid)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Question:
    """Of a caller.

    Parameters
    ----------
    transaction : str
        Transaction UID.
    caller : str
        AE title.
    instances : tuple of tuple of str
        SOP Class and Instance UIDs.
    since : float
        When it was put, in seconds since 1970.
    failures : int
        Of the attempts to answer it.
    """

    transaction: str
    caller: str
    instances: tuple[tuple[str, str], ...]
    since: float
    failures: int = 0


class Questions:
    """The table of them.

    Parameters
    ----------
    path : Path
        File of SQLite.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def put(self, question: Question) -> None:
        """Take a question; one that is put again is the same."""
        with self._database.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO questions VALUES (?, ?, ?, 0, ?, ?)",
                (
                    question.transaction,
                    question.caller,
                    json.dumps(question.instances),
                    question.since,
                    question.since,
                ),
            )

    def due(self, now: float) -> list[Question]:
        """Return those that are to be answered now."""
        with self._database.transaction() as database:
            rows = database.execute(
                "SELECT transaction_uid, caller, instances, since, failures FROM questions WHERE due <= ? ORDER BY due",
                (now,),
            ).fetchall()
        return [Question(row[0], row[1], tuple(map(tuple, json.loads(row[2]))), *row[3:]) for row in rows]

    def postpone(self, question: Question, due: float) -> None:
        """Answer a question later."""
        with self._database.transaction() as database:
            database.execute(
                "UPDATE questions SET due = ?, failures = ? WHERE transaction_uid = ? AND caller = ?",
                (due, question.failures + 1, question.transaction, question.caller),
            )

    def settle(self, question: Question) -> None:
        """Forget a question."""
        with self._database.transaction() as database:
            database.execute(
                "DELETE FROM questions WHERE transaction_uid = ? AND caller = ?",
                (question.transaction, question.caller),
            )
