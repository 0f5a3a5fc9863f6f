"""Where experiment files, presets and ablations lie: beside the user's file, or in the package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DEFAULT = "glue.yaml"


def shipped() -> Path:
    """The folder `experiments` that a built wheel carries in the package; in a source tree, the one beside it. Relative
    where it lies in the working directory, as a user would write it."""
    inside = PACKAGE / "experiments"
    folder = inside if inside.is_dir() else PACKAGE.parent / "experiments"
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def experiment_file(path: str | Path | None = None) -> Path:
    """The given experiment file, or the one for GLUE that the package carries."""
    return shipped() / DEFAULT if path is None else Path(path)


def folders(name: str, experiment: Path) -> list[Path]:
    """Where `presets`, `ablations` or `slurm` are looked for, first match first: beside the experiment file, one folder
    up, in the package."""
    return list(dict.fromkeys([experiment.parent / name, experiment.parent.parent / name, shipped() / name]))
