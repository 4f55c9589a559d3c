"""Fetch the data set's four IDX files.

Reads the sources that params.yaml lists, in order, until one has delivered all four files.
Writes artifacts/raw/DATASET/, uncompressed.
Fails when every source fails (the message gives each one's reason), when a delivered file does not have the checksum
that params.yaml states, or when a label is unknown.
"""

import polars as pl

from stages.core.config.params import load_params
from stages.core.data.idx import FILES, read_raw
from stages.core.data.schemas import raw_labels
from stages.core.data.sources import fetch_first
from stages.core.files.atomic import remove, replacing
from stages.core.files.errors import report_errors
from stages.core.files.exclusive import exclusive
from stages.core.files.layout import RAW, download_outputs, raw_folder
from stages.core.files.tables import validate


def main() -> None:
    params = load_params()
    dataset, target = params.chosen_dataset, raw_folder(params.dataset)
    for leftover in RAW.glob("*.partial"):  # A download of another data set that was killed may have left it.
        remove(leftover)
    with replacing(target) as folder:
        folder.mkdir()
        source = fetch_first(dataset, folder)
        for split in FILES:
            labels = pl.DataFrame({"label": read_raw(folder, split).labels})
            validate(labels, raw_labels(len(dataset.classes)), target)
    download_outputs(params.dataset).record(target)
    print(f"download: {params.dataset} from {source}, 4 files with the expected checksums in {target}")


if __name__ == "__main__":
    with report_errors("download"), exclusive("download"):
        main()
