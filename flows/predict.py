"""Predict the labels of the images in a folder, and write them to a table: `python -m flows.predict FOLDER`.

This needs no Prefect server. prefect.yaml deploys the same code as a flow.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from serving.folder.results import FolderResult, describe_skipped, predict_folder
from stages.core.files.errors import UserError, report_errors
from stages.core.files.layout import FOLDERS, ONNX

BATCH_SIZE = 256
EPILOG = """\
Files in the folder and its subfolders are recognized by their content, whatever their suffix. These formats are read:
  PNG, JPEG, WebP, GIF, BMP, TIFF   any size, coloured or grey; the first frame of an animation
  IDX (also gzipped)                3-D arrays of bytes, such as MNIST's images
  .npy                              uint8 [H, W], [N, H, W], [H, W, 3] or [N, H, W, 3]
Other files are skipped and counted, and the first few are named. Hidden files (.*, __MACOSX, Thumbs.db) are only
counted.
An image that is damaged or blank yields a row with its error.

The data set determines how an image whose size is not the model's is made to fit (`centre_ink` in params.yaml).
For drawings such as MNIST's, dark on light or light on dark, the ink is scaled and centred as in MNIST. For all other
data sets, the whole image is resized, and its grey levels are never inverted.

The output is predictions.parquet and predictions.csv, with the columns file, index (of the image within the file),
label, confidence, a probability for each class, unsure (whether the confidence is below the threshold that was chosen
on validation images) and error.
If a run was interrupted, the same command resumes it where it stopped."""


def default_output(given: Path) -> Path:
    """Return the default output folder for the images in `given`."""
    return FOLDERS / (given.resolve().stem or "root")


@flow(name="predict")
def predict(folder: str, output: str | None = None, model: str = str(ONNX), batch_size: int = BATCH_SIZE) -> None:
    """Predict the label of every image in a folder.

    Args:
        folder: the folder with the images, which may be in subfolders, or a single file of images.
        output: the folder for the tables; by default, artifacts/predictions/NAME for a folder NAME.
        model: the exported model to use.
        batch_size: the number of images that are predicted together.
    """
    bar = cast("UUID", create_progress_artifact(0.0, key="predict-progress"))
    shown = 0

    def show_progress(done: int, images: int) -> None:
        nonlocal shown
        if (percent := 100 * done // images) > shown:
            update_progress_artifact(bar, percent)
            shown = percent

    target = Path(output) if output else default_output(Path(folder))
    result = predict_folder(Path(folder), target, Path(model), batch_size, show_progress)
    create_table_artifact(count_rows(result), key="predictions", description=f"{result.table}")
    get_run_logger().info("%s", describe_result(result))


def count_rows(result: FolderResult) -> list[dict[str, object]]:
    """Return a row with the number of images for each label, one for the unsure ones and one for the errors."""
    counts = {**result.by_class, "unsure among them": result.unsure, "errors": result.errors}
    return [{"label": label, "images": count} for label, count in counts.items()]


def describe_result(result: FolderResult) -> str:
    """Return the summary that is the last line of the output."""
    resumed = f", {result.resumed:,} of them by an earlier run" if result.resumed else ""
    unproven = (
        "" if result.proven else "; the model is not verified to match the evaluated one; `make run` compares them"
    )
    return (
        f"{result.examples:,} images{resumed}; {result.unsure:,} unsure, {result.errors:,} errors,"
        f" {describe_skipped(result.survey)}; see {result.table}{unproven}"
    )


def main() -> None:
    parser = ArgumentParser(
        "python -m flows.predict", description="Predict the label of every image in a folder.", epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folder",
        type=Path,
        help="folder with the images, including its subfolders (links to folders are not followed), or a single file",
    )
    parser.add_argument("-o", "--output", type=Path, help=f"folder for the tables (default: {FOLDERS}/NAME)")
    parser.add_argument("-m", "--model", type=Path, default=ONNX, help=f"exported model to use (default: {ONNX})")
    parser.add_argument(
        "-b",
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        help=f"number of images predicted together (default: {BATCH_SIZE})",
    )
    arguments = parser.parse_args()
    columns = (TextColumn("predict"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with report_errors("predict"):
        try:
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                bar = progress.add_task("", total=None)
                result = predict_folder(
                    arguments.folder, arguments.output or default_output(arguments.folder), arguments.model,
                    arguments.batch_size,
                    lambda done, images: progress.update(bar, completed=done, total=images),
                )  # fmt: skip
        except KeyboardInterrupt:
            raise UserError("interrupted; the same command resumes where it stopped") from None
    print(f"predict: {describe_result(result)}")


if __name__ == "__main__":
    main()
