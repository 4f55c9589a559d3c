"""Fetch the data set from its sources, or list the files that lie in its folder.

Reads data/DATASET/. Where its dataset.yaml lists sources, reads those, in order, until one has delivered everything.
Writes artifacts/raw/DATASET/: the four IDX files, uncompressed, of a data set of arrays; for one of files,
files.parquet with the label, the checksum and the header of each. Files in data/DATASET/ are not copied.
Fails when every source failed (each with its reason), when a delivered file does not have the checksum that
dataset.yaml states, when a label is unknown, or when it is not clear what the classes are.
"""

import polars as pl

from stages.core.config.params import load_dataset, load_params
from stages.core.data import idx, schemas
from stages.core.data.config import UrlSource
from stages.core.data.raw import list_raw_files
from stages.core.data.sources import fetch, fetch_first
from stages.core.files.atomic import remove, replacing
from stages.core.files.errors import report_errors
from stages.core.files.exclusive import exclusive
from stages.core.files.layout import RAW, dataset_file, download_outputs, raw_files, raw_folder
from stages.core.files.tables import validate, write_table


def main() -> None:
    params = load_params()
    dataset, target = load_dataset(params), raw_folder(params.dataset)
    home = dataset_file(params.dataset).parent
    for leftover in RAW.glob("*.partial"):  # A killed download of another data set may have left it.
        remove(leftover)
    with replacing(target) as folder:
        folder.mkdir()
        source = str(home)
        if dataset.sources:
            source = fetch_first(dataset, folder)
        elif idx.is_idx(home):
            fetch(UrlSource(kind="url", url=source), folder)
        if idx.is_idx(folder):
            for split in idx.FILES:
                labels = pl.DataFrame({"label": idx.read_raw(folder, split).labels})
                validate(labels, schemas.raw_labels(len(dataset.classes or range(256))), target)
            found = "4 files with the right sha256" if dataset.sha256 else "4 files"
        else:
            table = list_raw_files(folder if dataset.sources else home)
            write_table(table, folder / raw_files(params.dataset).name, schemas.files())
            found = f"{len(table):,} files of {table['label'].n_unique():,} classes, listed"
    download_outputs(params.dataset).record(target)
    print(f"download: {params.dataset} from {source}, {found} in {target}")


if __name__ == "__main__":
    with report_errors("download"), exclusive("download"):
        main()
