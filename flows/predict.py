"""Predict the labels of a folder of images, as a table: `python -m flows.predict FOLDER`, without a Prefect server.

prefect.yaml deploys the same code as a flow.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from serving.batch import Summary, describe_skipped, predict_folder
from stages.core.files.errors import UserError, reported

MODEL = "artifacts/onnx/model.onnx"
OUTPUT = Path("artifacts/predictions")
BATCH_SIZE = 256
EPILOG = """\
Files in the folder and below it are recognized by their content, whatever their suffix. These are read:
  PNG, JPEG, WebP, GIF, BMP, TIFF   of any size, colored or grey; of an animation the first frame
  IDX (also gzipped)                of 3-D bytes, as MNIST's images come
  .npy                              uint8 [H, W], [N, H, W], [H, W, 3] or [N, H, W, 3]
Other files are skipped and counted, and the first of them are named; hidden ones (.*, __MACOSX, Thumbs.db) are only
counted.
An image that is damaged or blank becomes a row with its error.

The model's data set says how an image of another size than the model's is made to fit (`centre_ink` in params.yaml):
for drawings such as MNIST's, dark on light or light on dark, the ink is scaled and centred as in MNIST; for all other
data sets, the whole image is resized, and its grey levels are never inverted.

The output is predictions.parquet and predictions.csv: file, index (of the image within the file), label, confidence, a
probability for each class, unsure (less confident than the threshold chosen on validation images), error.
A run that was interrupted resumes where it stopped when it is started again."""


def output_for(given: Path) -> Path:
    return OUTPUT / (given.resolve().stem or "root")


@flow(name="predict")
def predict(folder: str, output: str | None = None, model: str = MODEL, batch_size: int = BATCH_SIZE) -> None:
    """Predict the label of every image in a folder.

    Args:
        folder: where the images are, also below it; or one file of images.
        output: where the tables go; default artifacts/predictions/NAME for a folder NAME.
        model: the exported file to use.
        batch_size: images that are answered together.
    """
    bar = cast("UUID", create_progress_artifact(0.0, key="predict-progress"))
    told = 0

    def tell(done: int, images: int) -> None:
        nonlocal told
        if (percent := 100 * done // images) > told:
            update_progress_artifact(bar, percent)
            told = percent

    target = Path(output) if output else output_for(Path(folder))
    summary = predict_folder(Path(folder), target, Path(model), batch_size, tell)
    create_table_artifact(rows_of(summary), key="predictions", description=f"{summary.table}")
    get_run_logger().info("%s", sentence(summary))


def rows_of(summary: Summary) -> list[dict[str, object]]:
    counts = {**summary.by_class, "unsure among them": summary.unsure, "errors": summary.errors}
    return [{"label": label, "images": count} for label, count in counts.items()]


def sentence(summary: Summary) -> str:
    resumed = f", {summary.resumed:,} of them by an earlier run" if summary.resumed else ""
    unproven = "" if summary.proven else "; the model is not proven equal to the evaluated one; `make run` proves it"
    return (
        f"{summary.images:,} images{resumed}; {summary.unsure:,} unsure, {summary.errors:,} errors,"
        f" {describe_skipped(summary.survey)}; see {summary.table}{unproven}"
    )


def main() -> None:
    parser = ArgumentParser(
        "python -m flows.predict", description="Predict the label of every image in a folder.", epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folder",
        type=Path,
        help="where the images are, also below it (links to folders are not followed); or one file of images",
    )
    parser.add_argument("-o", "--output", type=Path, help=f"where the tables go (default: {OUTPUT}/NAME)")
    parser.add_argument("-m", "--model", type=Path, default=Path(MODEL), help=f"the exported file (default: {MODEL})")
    parser.add_argument(
        "-b", "--batch-size", type=int, default=BATCH_SIZE, help=f"images answered together (default: {BATCH_SIZE})"
    )
    arguments = parser.parse_args()
    columns = (TextColumn("predict"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with reported("predict"):
        try:
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                bar = progress.add_task("", total=None)
                summary = predict_folder(
                    arguments.folder, arguments.output or output_for(arguments.folder), arguments.model,
                    arguments.batch_size,
                    lambda done, images: progress.update(bar, completed=done, total=images),
                )  # fmt: skip
        except KeyboardInterrupt:
            raise UserError("interrupted; the same command goes on where it stopped") from None
    print(f"predict: {sentence(summary)}")


if __name__ == "__main__":
    main()
