"""Proposes a ``DatasetSpec`` for a table, with a line for every column: what it becomes, why, what would change it.

    python -m dlrm_torchrec.preparation.propose clicks.csv --output spec.json
    python data/criteo/prepare.py table --spec spec.json --input clicks.csv --output prepared/clicks

It looks at the first rows of a file, a folder or a pattern. Codes are told from quantities by how well their exact
values and their size explain the label. The spec is a small JSON file; correct it where it is wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tyro
from iopath.common.file_io import g_pathmgr
from tyro.conf import Positional

from dlrm_torchrec.preparation.proposals.labels import find_label
from dlrm_torchrec.preparation.proposals.roles import Proposal, Role, Sample, propose_column
from dlrm_torchrec.preparation.proposals.writing import find_writing
from dlrm_torchrec.preparation.readers.paths import files_of
from dlrm_torchrec.preparation.readers.tables import Form, head
from dlrm_torchrec.schema import DatasetSpec


def propose(
    name: str,
    columns: Mapping[str, Any],
    *,
    label: str = "",
    positive: str = "",
    roles: Mapping[str, Role] | None = None,
) -> tuple[DatasetSpec, list[Proposal], list[str]]:
    """The spec for a file with these columns, Arrow arrays by name; each column's proposal; and notes on the whole.

    ``roles`` are those that a person chose. Raises ValueError if no column is surely the label, or none is a feature.
    """
    roles = dict(roles or {})
    unknown = [each for each in roles if each not in columns]
    if unknown:
        raise ValueError(f"columns that you name must be among {list(columns)}: got {unknown[0]!r}; correct it")
    writing = find_writing(columns)
    found = find_label(columns, writing.form, label)
    sample = Sample(form=writing.form, labels=found.values, is_number=found.is_number, roles=roles)
    proposals = [propose_column(each, values, sample) for each, values in columns.items() if each != found.name]
    proposals = _with_own_names(proposals, {found.name})
    spec = DatasetSpec(
        name=name,
        label=found.name,
        positive_label=positive or found.positive,
        target="number" if found.is_number else "binary",
        dense=tuple(feature for proposal in proposals for feature in proposal.dense),
        sparse=tuple(feature for proposal in proposals for feature in proposal.sparse),
        missing=writing.missing,
        decimal=writing.marks.decimal,
        thousands=writing.marks.thousands,
    )
    return spec, [Proposal(column=found.name, reason=found.reason), *proposals], writing.notes


def _with_own_names(proposals: Sequence[Proposal], taken: set[str]) -> list[Proposal]:
    """The proposals with names of features that no other feature has."""
    taken = {*taken, *(proposal.column for proposal in proposals)}
    result = []
    for proposal in proposals:
        free = (taken - {proposal.column}).copy()

        def own(name: str, free: set[str] = free) -> str:
            while name in free:
                name += "_"
            free.add(name)
            taken.add(name)
            return name

        dense = tuple(replace(feature, name=own(feature.name), column=feature.raw) for feature in proposal.dense)
        sparse = tuple(replace(feature, name=own(feature.name), column=feature.raw) for feature in proposal.sparse)
        result.append(replace(proposal, dense=dense, sparse=sparse))
    return result


def _unread_folders(path: str, columns: Mapping[str, Any]) -> list[str]:
    """A sentence for each column that only the names of folders tell, as in ``day=2026-11-01/part-0.parquet``."""
    folders = (folder for file in files_of(path) for folder in file.split("/")[:-1])
    names = dict.fromkeys(folder.split("=")[0] for folder in folders if "=" in folder)
    return [
        f"{name!r} stands in the names of folders alone, which are not read; write it into the files to have it"
        for name in names
        if name and name not in columns
    ]


def main(
    file: Positional[str],
    *,
    output: str = "",
    label: str = "",
    positive: str = "",
    codes: tuple[str, ...] = (),
    managed: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
    times: tuple[str, ...] = (),
    out: tuple[str, ...] = (),
    separator: str = "",
    columns: tuple[str, ...] = (),
    rows: int = 200_000,
    name: str = "",
) -> None:
    """Print what each column of a table becomes, and write the spec.

    Args:
        file: Parquet or delimited text, a folder or a pattern of such files
        output: JSON file to write; by default none is written
        label: column to predict; needed only if its name does not tell
        positive: value of the label that means 1; needed only if it cannot be told
        codes: columns that are categories, whatever they look like
        managed: columns of values without end, such as user ids: a table gives its rows to those that training meets
        numbers: columns that are quantities
        times: columns that are times
        out: columns to leave out
        separator: separator of text; by default the first lines tell
        columns: names of the columns of text without a header line
        rows: number of first rows to look at
        name: name of the data set; by default the name of the file
    """
    roles: dict[str, Role] = {}
    for role, names in (("code", codes), ("managed", managed), ("number", numbers), ("time", times), ("out", out)):
        roles |= dict.fromkeys(names, role)  # type: ignore[arg-type]  # the words are the roles
    sample = head(file, Form(separator=separator, names=columns), rows)
    title = name or file.rstrip("/").split("/")[-1].split(".")[0]
    spec, proposals, notes = propose(title, sample, label=label, positive=positive, roles=roles)
    width = max(len(proposal.column) for proposal in proposals)
    print(f"{proposals[0].column:{width}}  {proposals[0].reason}")
    for proposal in proposals[1:]:
        print(f"{proposal.column:{width}}  {proposal.line}")
    for note in [*notes, *_unread_folders(file, sample)]:
        print(note)
    if output:
        with g_pathmgr.open(output, "w") as stream:
            json.dump(spec.to_json(), stream, indent=1)
        print(f"{output}: {len(spec.dense)} dense and {len(spec.sparse)} sparse features; prepare with --spec {output}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
