"""Rows are added with the columns, and the classes, of those that are there."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from persyn_datasets import InputError
from persyn_datasets.data.alignment import align


def test_classes_are_added_by_their_names(tmp_path):
    def file(name, names, rows):
        label = ClassLabel(names=names)
        features = Features(
            {"kind": label, "all": List(label), "in": {"one": label, "n": Value("int64")}}
        )
        table = Dataset.from_list(rows, features=features)
        table.to_parquet(tmp_path / name)
        return tmp_path / name, table

    rows = [
        {"kind": "no", "all": ["yes", "no"], "in": {"one": "yes", "n": 1}},
        {"kind": None, "all": [], "in": {"one": None, "n": None}},
    ]
    _, published = file("a.parquet", ["yes", "no", "maybe"], rows)
    new, _ = file("b.parquet", ["no", "yes"], rows)
    align(new, published.features.arrow_schema, tmp_path / "c.parquet")
    found = Dataset.from_parquet(str(tmp_path / "c.parquet"))
    assert found.features == published.features and found.to_list() == published.to_list()
    other, _ = file("d.parquet", ["no", "yes", "never"], rows)
    with pytest.raises(InputError, match="'never'.*'kind'"):
        align(other, published.features.arrow_schema, tmp_path / "e.parquet")
