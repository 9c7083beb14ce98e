"""CSV and TSV with a head, images as paths or base64; VLMEvalKit's TSV reads as it is."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from chronostat.data.sources.rows import Row
from chronostat.errors import DataError


def table_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """The rows of a table, each with the line that it ends on.

    In VLMEvalKit's tables an image that is shared stands once; other rows name the index of the row that holds it.

    Raises:
        DataError: it cannot be read, or a row has another number of fields than the head.
    """
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    pictures: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, restkey="\0more")
            for values in reader:
                where = f"{path}:{reader.line_num}"
                if "\0more" in values or None in values.values():
                    raise DataError(f"{where}: it has another number of fields than the head of the file")
                image, index = values.get("image"), values.get("index")
                if index and image:
                    values["image"] = pictures.get(image, image)
                    pictures.setdefault(index, values["image"])
                yield Row(where=where, values=values, base=path.parent)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the data file {path}: {error}") from None
