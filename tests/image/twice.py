"""Builds the image twice from nothing and says how the two differ: in times alone, if all is well."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile

from tests.app.tiny_run import ROOT

_ATTRIBUTES = ("type", "mode", "uid", "gid", "size", "linkname")


def _contents(image: str) -> dict[str, tuple[object, ...]]:
    """Every path of an image with all but its times."""
    identity = subprocess.run(["docker", "create", image], capture_output=True, text=True, check=True).stdout.strip()
    found: dict[str, tuple[object, ...]] = {}
    try:
        with (
            subprocess.Popen(["docker", "export", identity], stdout=subprocess.PIPE) as export,
            tarfile.open(fileobj=export.stdout, mode="r|") as archive,
        ):
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                digest = hashlib.file_digest(file, "sha256").hexdigest() if file is not None else ""  # type: ignore[arg-type]
                found[member.name] = (*(getattr(member, name) for name in _ATTRIBUTES), digest)
    finally:
        subprocess.run(["docker", "rm", "--volumes", identity], capture_output=True, check=True)
    return found


def _configuration(image: str) -> str:
    shape = (
        "{{json .Config.Env}} {{json .Config.Cmd}} {{json .Config.Entrypoint}} {{json .Config.Labels}} {{.Config.User}}"
    )
    inspected = subprocess.run(
        ["docker", "image", "inspect", "--format", shape, image], capture_output=True, check=True
    )
    return inspected.stdout.decode()


def main() -> int:
    names = [f"covid-ct-map-twice:{number}" for number in (1, 2)]
    for name in names:
        command = [str(ROOT / "deploy" / "build-image"), "--no-cache"]
        subprocess.run(command, env=os.environ | {"IMAGE": name}, stdout=subprocess.DEVNULL, check=True)
    first, second = (_contents(name) for name in names)
    differing = sorted(path for path in first.keys() | second.keys() if first.get(path) != second.get(path))
    for path in differing:
        print(path, first.get(path), second.get(path))
    alike = len({_configuration(name) for name in names}) == 1
    print(f"{len(first)} paths, of which {len(differing)} differ in more than their times")
    print(f"the configurations {'are the same' if alike else 'differ'}")
    subprocess.run(["docker", "image", "rm", *names], capture_output=True, check=True)
    return 0 if alike and not differing else 1


if __name__ == "__main__":
    sys.exit(main())
