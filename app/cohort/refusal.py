"""Studies of a cohort that the system refuses."""

from __future__ import annotations

from app.cohort.table import CohortStudy
from app.outcome import UsageError
from operators.refusal import InputRefused


class StudyRefused(UsageError):
    """The system refuses a study, as it does in use; nothing else is wrong with it.

    Parameters
    ----------
    study : CohortStudy
        Its name is repeated.
    refusal : InputRefused
        Why; ``code`` keeps the reason code.
    """

    def __init__(self, study: CohortStudy, refusal: InputRefused) -> None:
        super().__init__(f"study {study.path.name}: {refusal.code}: {refusal.message}")
        self.code = str(refusal.code)
