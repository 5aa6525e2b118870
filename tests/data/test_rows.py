from datasets import Dataset

from persyn_datasets.data.rows import rows_hash


def test_rows_have_one_hash_whatever_their_chunks():
    rows = [{"a": f"text {i}", "b": None if i % 3 else [i], "c": i % 2 == 0} for i in range(2500)]
    whole = Dataset.from_list(rows)
    parts = Dataset.from_list(rows[7:]).select(range(93, 2400))
    assert rows_hash(parts) == rows_hash(whole.select(range(100, 2407)))
    assert rows_hash(parts) == rows_hash(Dataset.from_list(rows[100:2407], whole.features))
    assert rows_hash(whole) != rows_hash(whole.select(range(2499)))
    assert rows_hash(whole) != rows_hash(whole.rename_column("a", "z"))
