"""Generate sdk/vtryon/v1 from the protos beside this file; `--check` only compares."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).parent
TARGET = PROTOS.parent / "sdk" / "vtryon" / "v1"


def generate(out: Path) -> None:
    """Run protoc with the pinned plugins, into `out`/vtryon/v1."""
    sources = sorted(str(path) for path in (PROTOS / "vtryon" / "v1").glob("*.proto"))
    bin_folder = Path(sys.executable).parent
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"),
        *(f"--python_out={out}", f"--grpc_python_out={out}"),
        f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
        *(f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"),
        *sources,
    ]
    subprocess.run(command, check=True)  # noqa: S603
    package = out / "vtryon" / "v1"
    for proto in PROTOS.glob("vtryon/v1/*.proto"):
        if "\nservice " not in proto.read_text():
            for stub in package.glob(f"{proto.stem}_pb2_grpc.*"):
                stub.unlink()
    (package / "__init__.py").write_text(
        '"""Generated from protos/vtryon/v1: `make generate`."""\n'
    )


def main() -> int:
    """Write the generated code, or say which files are not current."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = Path(scratch) / "vtryon" / "v1"
        if "--check" not in sys.argv:
            shutil.rmtree(TARGET, ignore_errors=True)
            shutil.copytree(fresh, TARGET)
            return 0
        names = {p.name for folder in (fresh, TARGET) for p in folder.iterdir() if p.is_file()}
        _, different, missing = filecmp.cmpfiles(fresh, TARGET, sorted(names), shallow=False)
        if stale := different + missing:
            sys.stderr.write(f"not current, run `make generate`: {', '.join(stale)}\n")
        return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
