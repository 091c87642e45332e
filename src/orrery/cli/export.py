"""`orrery export`: a model as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path

import typer

from orrery.cli import output


def export(
    model: Path = typer.Argument(..., help="A folder of a model: ours, a run's, one that `orrery finetune` wrote, or transformers'."),
    onnx: Path = typer.Option(..., "--onnx", help="The file to write; what is there is replaced."),
) -> None:
    """Write an encoder, with its head, as an ONNX file; its answers are compared with the model's first.

    Example:  orrery export runs/stars --onnx stars.onnx
    """
    from orrery.core.errors import ConfigError
    from orrery.models.folders import open_folder
    from orrery.models.onnx import to_onnx

    if onnx.is_dir():
        raise ConfigError(f"'{onnx}' is a folder; name a file, such as {onnx / 'model.onnx'}")
    written = to_onnx(open_folder(model)[0], onnx)
    print(f"{written}  {output.size(written.stat().st_size)}")
