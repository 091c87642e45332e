"""`orrery export`: a model as a file for other runtimes, or smaller."""

from __future__ import annotations

from pathlib import Path

import typer

from orrery.cli import output


def export(
    model: Path = typer.Argument(..., help="A folder of a model: ours, a run's, one that `orrery finetune` wrote, or transformers'."),
    onnx: Path | None = typer.Option(None, "--onnx", help="The file to write; what is there is replaced."),
    quantise: Path | None = typer.Option(None, "--quantise", help="The folder to write: the same model with matrices in 8 bits (pnlp-mixer)."),
) -> None:
    """Write an encoder, or an encoder-decoder with a head, as an ONNX file; its answers are compared with the model's first. Or write it in 8 bits.

    Example:  orrery export runs/stars --onnx stars.onnx

    Example:  orrery export runs/stars --quantise runs/stars8
    """
    from orrery.core.errors import ConfigError
    from orrery.models.folders import open_folder
    from orrery.models.onnx import to_onnx

    if (onnx is None) == (quantise is None):
        raise ConfigError("say what to write: --onnx FILE, or --quantise FOLDER")
    if quantise is not None:
        from orrery.methods.quantise import quantise as write

        sizes = write(model, quantise)
        print(f"{quantise}  weights {output.size(sizes['bytes'])}, before {output.size(sizes['before'])}")
        return
    assert onnx is not None
    if onnx.is_dir():
        raise ConfigError(f"'{onnx}' is a folder; name a file, such as {onnx / 'model.onnx'}")
    written = to_onnx(open_folder(model)[0], onnx)
    print(f"{written}  {output.size(written.stat().st_size)}")
    if (model / "words").is_dir():
        output.remark("note: the file holds the network alone; the bag of words that answers beside it stays in the folder")
