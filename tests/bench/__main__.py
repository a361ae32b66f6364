"""Run the benchmarks; the tables go to standard output and, as JSON, to ``build/bench.json``."""

from __future__ import annotations

import json
from pathlib import Path

from tests.bench import explanation, gateway, job, loading, warm, writing

parts = {
    "loading": loading,
    "writing": writing,
    "explanation": explanation,
    "job": job,
    "warm": warm,
    "gateway": gateway,
}
results = {name: part.run() for name, part in parts.items()}
target = Path("build", "bench.json")
target.parent.mkdir(exist_ok=True)
target.write_text(json.dumps(results, indent=2))
print(f"written to {target}")
