"""Name every file that the stages exchange; no other module of a stage contains a path below `artifacts/`."""

from pathlib import Path

from stages.core.files.checksums import Outputs

DATA = Path("data")  # It holds a folder for each data set: its dataset.yaml and, if they are yours, its files.
RAW = Path("artifacts/raw")  # It holds one folder for each data set.

NORMALIZED = Path("artifacts/normalized")
SPEC = NORMALIZED / "spec.json"
EXAMPLES = NORMALIZED / "examples.parquet"
DATA_METRICS = Path("artifacts/metrics/normalize.json")
DATA_DETAILS = Path("artifacts/details/normalize.json")

MODEL = Path("artifacts/model/model.pt")
MANIFEST = Path("artifacts/model/manifest.json")
HISTORY = Path("artifacts/plots/history.csv")
VALIDATION_METRICS = Path("artifacts/metrics/validation.json")
LIVE = Path("artifacts/live")  # DVCLive's files, for those who watch a training run.
CHECKPOINTS = Path("artifacts/checkpoints")  # Unfinished training runs.

METRICS = Path("artifacts/metrics/evaluation.json")
DETAILS = Path("artifacts/details/evaluation.json")
PER_CLASS = Path("artifacts/metrics/per_class.csv")
PREDICTIONS = Path("artifacts/plots/predictions.csv")
LABEL_ERRORS = Path("artifacts/audit/label_errors.csv")

ONNX = Path("artifacts/onnx/model.onnx")

PARITY_METRICS = Path("artifacts/metrics/parity.json")
PARITY_DETAILS = Path("artifacts/details/parity.json")

FOLDERS = Path("artifacts/predictions")  # Predictions for the user's own files, by the name of their folder.

BASELINE = Path("artifacts/baseline")  # Metrics of another run, by data set, for comparison.
PAGE = Path("artifacts/report/index.html")
CARD = Path("artifacts/report/MODEL_CARD.md")
AUDIT = Path("artifacts/report/audit.csv")
LOCAL = Path("artifacts/report/local.js")

TIMES = Path("artifacts/times")  # How long each stage took. Times differ between runs, so they are no stage's output.


def outputs(stage: str, checksums: Path) -> Outputs:
    """Return the outputs of a stage."""
    return Outputs(stage, checksums, TIMES)


# The list of checksums lies beside the main output of each stage. Stage `download` has one for each data set.
NORMALIZE = outputs("normalize", NORMALIZED / "SHA256SUMS")
TRAIN = outputs("train", MODEL.parent / "SHA256SUMS")
EVALUATE = outputs("evaluate", DETAILS.with_suffix(".sha256"))
EXPORT = outputs("export", ONNX.parent / "SHA256SUMS")
PARITY = outputs("parity", PARITY_DETAILS.with_suffix(".sha256"))
REPORT = outputs("report", PAGE.parent / "SHA256SUMS")
TIMED = (NORMALIZE, TRAIN, EVALUATE, EXPORT, PARITY)  # the stages whose times the report shows, and `download`


def dataset_file(dataset: str) -> Path:
    """Return the file that describes a data set; it need not exist."""
    return DATA / dataset / "dataset.yaml"


def raw_files(dataset: str) -> Path:
    """Return the table of a data set's files, which a data set of arrays does not have."""
    return RAW / dataset / "files.parquet"


def raw_folder(dataset: str) -> Path:
    """Return the folder of a data set as it was downloaded."""
    return RAW / dataset


def download_outputs(dataset: str) -> Outputs:
    """Return the outputs of stage `download` for a data set."""
    return outputs("download", RAW / dataset / "SHA256SUMS")


def split_array(split: str) -> Path:
    """Return the file of the raw inputs of a split."""
    return NORMALIZED / f"{split}.npy"
