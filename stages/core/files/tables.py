"""Read and write tables and JSON files; tables are validated in both directions."""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
from pandera.errors import SchemaErrors
from pandera.polars import DataFrameSchema

from stages.core.files.atomic import replacing
from stages.core.files.errors import UserError

SHOWN = 5  # failing rows named in a message


def validate(table: pl.DataFrame, schema: DataFrameSchema, path: Path) -> None:
    """Raise `UserError` with `path`, the column, the rule and the first failing rows of every violation."""
    try:
        schema.validate(table, lazy=True)
    except SchemaErrors as errors:
        raise UserError("\n".join([f"{path} violates its schema:", *list_violations(errors)])) from None


def list_violations(errors: SchemaErrors) -> list[str]:
    """Return one line for each broken rule of each column, with the first failing rows."""
    lines = []
    cases: pl.DataFrame = errors.failure_cases
    for (column, check), rows in cases.group_by("column", "check", maintain_order=True):
        where = f"column '{column}'" if column else "table"
        found = [
            # Polars appends its query plan to an error.
            ("" if row["index"] is None else f"row {row['index']}: ") + str(row["failure_case"]).split("\n")[0]
            for row in rows.head(SHOWN).iter_rows(named=True)
        ]
        lines.append(f"  {where}: {check} ({len(rows)} failing; {', '.join(found)})")
    return lines


def write_table(table: pl.DataFrame, path: Path, schema: DataFrameSchema, *, for_people: bool = False) -> None:
    """Validate a table and save it as CSV or Parquet, depending on the suffix of `path`.

    CSV `for_people` begins with UTF-8's byte order mark, without which Excel misreads every letter beyond ASCII.
    """
    validate(table, schema, path)
    buffer = io.BytesIO()  # Polars does not distinguish a full disk from other errors.
    if path.suffix == ".csv":
        table.write_csv(buffer, include_bom=for_people)
    else:
        table.write_parquet(buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def read_table(path: Path, schema: DataFrameSchema) -> pl.DataFrame:
    """Return the validated table in a CSV or Parquet file; raise `UserError` if it is damaged or breaks the schema."""
    try:
        if path.suffix == ".csv":
            table = pl.read_csv(
                path, schema_overrides={name: column.dtype.type for name, column in schema.columns.items()}
            )
        else:
            table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    validate(table, schema, path)
    return table


def write_json(values: dict[str, Any], path: Path) -> None:
    """Save values as JSON, one key per line; raise `ValueError` for a number that is not finite."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise `UserError` if it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it does not hold a JSON object")
    return values
