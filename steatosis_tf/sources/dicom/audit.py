"""Search a folder for personal values of the DICOM export it was made from."""

import collections
from pathlib import Path

from tqdm import tqdm

from steatosis_tf.sources.dicom.file_search import Finding, search_file, search_name
from steatosis_tf.sources.dicom.files import Source
from steatosis_tf.sources.dicom.personal_values import PersonalValue, personal_values, runs_of
from steatosis_tf.sources.dicom.read import quiet_pydicom, read_dataset, text_of
from steatosis_tf.sources.dicom.value_finder import Finder, source_name_value
from steatosis_tf.sources.rejection import Rejection

_TECHNICAL_COLUMNS = {"manufacturer": "Manufacturer", "model": "ManufacturerModelName"}


def audit_phi(output_dir: str | Path, source_dir: str | Path) -> list[Finding]:
    """Look for every name, id, date and free text of a DICOM export in a folder made from it.

    Searched are file and folder names, CSV cells, all metadata of PNG files, every feature of
    TFRecords, and the text of any other file. Dates are looked for in the usual ways of writing
    them, names word by word and joined. Not searched: pixels; codes, times and numbers of the
    header; words under three letters, ids under three characters.

    Args:
        output_dir: output of `ingest_dicom`, or of any later step.
        source_dir: the export: a folder or zip archive.

    Returns:
        The findings in the order of the files; an empty list is a clean output.

    Raises:
        ValueError: if either is missing, or the source holds no readable DICOM file, so that an
            empty list would prove nothing.
    """
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        raise ValueError("Expected the folder of an output. Received: no such folder.")
    values, technical = _source_values(source_dir)
    finder = Finder(values)
    findings: list[Finding] = []
    paths = sorted(path for path in output_dir.rglob("*") if not path.is_dir())
    for number, path in enumerate(tqdm(paths, "audit", disable=None), start=1):
        name = path.relative_to(output_dir).as_posix()
        hidden = f"file {number} of {len(paths)} in sorted order ({path.suffix[:8]})"
        if in_name := search_name(finder, path.relative_to(output_dir), hidden):
            name = hidden
            findings += in_name
        if path.is_file():
            findings += search_file(finder, path, name, technical)
    return list(dict.fromkeys(findings))


def _source_values(
    source_dir: str | Path,
) -> tuple[set[PersonalValue], dict[str, frozenset[str]]]:
    """All personal values, and the words of each technical field that several patients share."""
    values: set[PersonalValue] = set()
    patients: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    num_read = 0
    with quiet_pydicom(), Source(source_dir) as source:
        for file in tqdm(source.files, "source", disable=None):
            try:
                with source.open(file) as stream:
                    dataset = read_dataset(stream, with_pixels=False)
            except Rejection:
                continue  # ingest rejects it too, so nothing of it can have left
            num_read += 1
            values |= personal_values(dataset) | source_name_value(file.name)
            for column, keyword in _TECHNICAL_COLUMNS.items():
                for word in runs_of(text_of(dataset, keyword)):
                    patients[column, word].add(text_of(dataset, "PatientID"))
    if not num_read:
        raise ValueError(
            "Expected the DICOM export that the output was made from. Received: a source without "
            "a readable DICOM file, against which nothing can be proved."
        )
    technical = {
        column: frozenset(
            word for (of, word), ids in patients.items() if of == column and len(ids) > 1
        )
        for column in _TECHNICAL_COLUMNS
    }
    return values, technical
