"""How many processor cores this process may use, which in a container is often fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def use_granted_cores() -> None:
    """Have PyTorch work in no more threads than this process may use cores, unless ``OMP_NUM_THREADS`` says how many.

    By itself it takes the cores of the machine. Threads beyond the quota of a container only make each other wait.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), granted_cores()))


def granted_cores(cgroup: Path = _CGROUP) -> int:
    """Return the number of cores by affinity and by the quota of the control group, rounded up; at least 1.

    Parameters
    ----------
    cgroup : Path
        Where the control group of this process is mounted, version 1 or 2.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores that the control group grants; None where it does not say."""
    try:
        if (cgroup / "cpu.max").exists():
            granted, period = (cgroup / "cpu.max").read_text("ascii").split()
        else:
            granted = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text("ascii").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text("ascii").strip()
        return None if granted in ("max", "-1") else int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
