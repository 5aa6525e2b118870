import re
import signal
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persyn_datasets.config.errors import BuildError, InputError
from persyn_datasets.store import journal as module
from persyn_datasets.store.journal import Journal, default_root, digest


def entries(journal):
    return {p.name for p in journal.folder.iterdir()}


def child(code, *args):
    """A real process that has a journal `j` with the identity {"a": 1}."""
    setup = (
        "import sys, time; from persyn_datasets.store import journal as m; j = m.Journal('kind', "
        "'n', {'a': 1})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", setup + code, *args], stdout=subprocess.PIPE, text=True
    )


def test_records_persist_and_any_json_value_is_one():
    records = {"k1": {"text": "ä\n\0", "n": None}, "k2": 0.1, "k3": None, "k4": [1, "x"]}
    with Journal("kind", "a/b c", {"a": 1}) as journal:
        for key, record in records.items():
            journal.put(key, record)
    again = Journal("kind", "a/b c", {"a": 1})
    assert again.get([*records, "k5"]) == records
    assert again.get(["k2"]) == {"k2": 0.1}
    assert again.get([]) == {}
    assert not [name for name in entries(again) if name.endswith(".tmp")]
    assert again.folder.is_relative_to(default_root() / "kind")


def test_identities_and_kinds_are_apart():
    with Journal("kind", "n", {"a": 1}) as journal:
        journal.put("k", 1)
    assert Journal("kind", "n", {"a": 2}).get(["k"]) == {}
    assert Journal("other", "n", {"a": 1}).get(["k"]) == {}
    assert Journal("kind", "n", {"a": 1}).get(["k"]) == {"k": 1}


def test_the_last_record_of_a_key_wins_within_a_writer():
    with Journal("kind", "n", {}) as journal:
        journal.put("k", "old")
        journal.put("k", "new")
    assert journal.get(["k"]) == {"k": "new"}


def test_an_error_in_the_block_keeps_what_came_before():
    with pytest.raises(KeyboardInterrupt), Journal("kind", "n", {}) as journal:
        journal.put("k", 1)
        raise KeyboardInterrupt
    assert Journal("kind", "n", {}).get(["k"]) == {"k": 1}


def test_a_record_is_there_as_soon_as_it_is_put():
    with Journal("kind", "n", {}) as journal:
        journal.put("k", 1)
        assert journal.get(["k"]) == Journal("kind", "n", {}).get(["k"]) == {"k": 1}


def test_full_parts_stay_and_small_ones_are_merged(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_PART", 4)
    monkeypatch.setattr(module, "SMALL_PARTS", 3)

    def sizes():
        return sorted(pq.read_metadata(part).num_rows for part in journal.folder.glob("*.parquet"))

    with Journal("kind", "n", {}) as journal:
        for i in range(9):
            journal.put(f"k{i}", i)
        assert sizes() == [4, 4]
    assert sizes() == [1, 4, 4]
    for i in range(9, 12):
        with Journal("kind", "n", {}) as journal:
            journal.put(f"k{i}", i)
    assert sizes() == [4, 4, 4] and len(entries(journal)) == 4
    assert journal.get(f"k{i}" for i in range(12)) == {f"k{i}": i for i in range(12)}


def test_two_processes_share_a_folder():
    code = "with j:\n  for i in range(50):\n    j.put(f'{sys.argv[1]}{i}', i)"
    writers = [child(code, name) for name in "ab"]
    assert [w.wait(60) for w in writers] == [0, 0]
    expected = {f"{name}{i}": i for name in "ab" for i in range(50)}
    journal = Journal("kind", "n", {"a": 1})
    assert journal.get(expected) == expected
    assert not list(journal.folder.glob(".*"))


def test_a_killed_process_loses_nothing_that_was_put():
    process = child("for i in range(10**6): j.put(f'k{i}', 'x' * 1000); print(i, flush=True)")
    for _ in range(100):
        last = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    last = [last, *process.stdout.read().splitlines()][-1]
    assert process.wait(10) == -signal.SIGKILL
    keys = [f"k{i}" for i in range(int(last) + 1)]
    assert Journal("kind", "n", {"a": 1}).get(keys) == dict.fromkeys(keys, "x" * 1000)


def test_half_a_line_is_no_record():
    journal = Journal("kind", "n", {"a": 1})
    (journal.folder / "killed.log").write_bytes('k1\t"ä"\nk2\t"ä'.encode()[:-1])
    assert journal.get(["k1", "k2"]) == {"k1": "ä"}


def test_what_dead_writers_left_is_harmless_and_tidied(monkeypatch):
    code = (
        "j.put('mine', 1); (j.folder / '.x.parquet.1.tmp').write_text('half'); print(1, "
        "flush=True)\n"
    )
    process = child(code + "time.sleep(60)")
    process.stdout.readline()
    process.kill()
    process.wait(10)
    for i in range(3):
        with Journal("kind", "n", {"a": 1}) as journal:
            journal.put(f"k{i}", i)
    expected = {"mine": 1, "k0": 0, "k1": 1, "k2": 2}
    assert journal.get(expected) == expected and ".x.parquet.1.tmp" in entries(journal)
    monkeypatch.setattr(module, "SMALL_PARTS", 3)
    journal.tidy()  # who wrote them might still live
    assert len(list(journal.folder.glob("*.log"))) == 1
    monkeypatch.setattr(module, "DEAD_AFTER", -1.0)
    journal.tidy()
    assert entries(journal) == {"identity.json", next(journal.folder.glob("*.parquet")).name}
    assert journal.get(expected) == expected


def test_a_writer_that_rested_long_and_was_taken_for_dead_loses_nothing(monkeypatch):
    monkeypatch.setattr(module, "SMALL_PARTS", 0)
    with Journal("kind", "n", {"a": 1}) as journal:
        journal.put("k0", 0)
        monkeypatch.setattr(module, "DEAD_AFTER", -1.0)
        Journal("kind", "n", {"a": 1}).tidy()
        assert not list(journal.folder.glob("*.log"))
        journal.put("k1", 1)
    assert Journal("kind", "n", {"a": 1}).get(["k0", "k1"]) == {"k0": 0, "k1": 1}


def test_readers_and_writers_see_everything_while_parts_are_merged(monkeypatch):
    monkeypatch.setattr(module, "SMALL_PARTS", 2)
    code = "m.SMALL_PARTS = 2\nfor i in range(40):\n"
    code += "  with m.Journal('kind', 'n', {'a': 1}) as j: j.put(sys.argv[1] + str(i), i)"
    writers = [child(code, name) for name in "abc"]
    reader, keys, seen = (
        Journal("kind", "n", {"a": 1}),
        [f"{n}{i}" for n in "abc" for i in range(40)],
        0,
    )
    while any(w.poll() is None for w in writers):
        found = len(reader.get(keys))
        assert found >= seen
        seen = found
    assert [w.wait() for w in writers] == [0, 0, 0]
    assert reader.get(keys) == {f"{n}{i}": i for n in "abc" for i in range(40)}
    reader.tidy()
    assert len(list(reader.folder.glob("*.parquet"))) <= 3


def test_a_full_disk_ends_the_work_and_keeps_what_was_written():
    """A limit of the file size stands for the disk: the write itself fails, after half a line."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    with j:
        for i in range(100):
            j.put(f"k{i}", "x" * 1000)
except m.BuildError as error:
    print(error)
    j.put("k", 1)
"""
    words = child(code).communicate(timeout=60)[0]
    assert re.search(
        "cannot be written: .*(No space left|File too large).*with .PERSYN_JOURNAL", words
    )
    kept = {f"k{i}": "x" * 1000 for i in range(65)}
    assert Journal("kind", "n", {"a": 1}).get([*kept, "k65", "k"]) == kept | {"k": 1}


def test_reading_while_another_writes(monkeypatch):
    """Logs grow, and become parts, between any two reads."""
    monkeypatch.setattr(module, "ROWS_PER_PART", 50)
    journal, done = Journal("kind", "n", {}), threading.Event()

    def write():
        for i in range(3000):
            journal.put(f"k{i}", i)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reader, seen = Journal("kind", "n", {}), 0
    while not done.is_set():
        found = reader.get(f"k{i}" for i in range(3000))
        assert seen <= len(found)
        seen = len(found)
    writer.join()
    assert len(reader.get(f"k{i}" for i in range(3000))) == 3000


def test_digest_is_of_the_content():
    assert digest({"a": 1, "b": [2]}) == digest({"b": (2,), "a": 1})
    assert len({digest(v) for v in ({"a": 1}, {"a": 2}, {"a": "1"}, [["a", 1]], "ä", "a")}) == 6


@pytest.mark.parametrize(
    "torn",
    [
        b"no tab at all\n",
        b'k2\t{"half": "of a rec\n',
        b"\0\0\0\0\0\0\n",
        b"k2\t\n",
        b"\n",
        b"\xff\xfe\t1\xff\n",
        b'k2\t{"no line end": 1}',
    ],
)
def test_a_torn_line_costs_its_own_record_only(torn, monkeypatch):
    """Whatever a crash leaves, in a log and in the part that the log becomes."""
    journal = Journal("kind", "n", {})
    journal.put("k1", {"text": "one"})
    [log] = journal.folder.glob("*.log")
    log.write_bytes(torn + log.read_bytes() if torn.endswith(b"\n") else log.read_bytes() + torn)
    assert journal.get(["k1", "k2"]) == {"k1": {"text": "one"}}
    monkeypatch.setattr(module, "DEAD_AFTER", -1.0)
    monkeypatch.setattr(module, "SMALL_PARTS", 0)
    with Journal("kind", "n", {}) as later:
        later.put("k3", 3)
    assert not list(journal.folder.glob("*.log"))
    assert Journal("kind", "n", {}).get(["k1", "k2", "k3"]) == {"k1": {"text": "one"}, "k3": 3}


def test_a_part_that_an_older_version_made_of_a_torn_line_is_read():
    journal = Journal("kind", "n", {})
    table = pa.table({"key": ["k1", "k2"], "record": ["1", '{"hal']})
    pq.write_table(table, journal.folder / "old.parquet")
    assert journal.get(["k1", "k2"]) == {"k1": 1}


def test_a_damaged_part_is_named():
    journal = Journal("kind", "n", {})
    (journal.folder / "bad.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(BuildError, match="bad.parquet"):
        journal.get(["k"])


def test_get_reads_a_bounded_part_into_memory():
    """Of 64 MB of records, merged from many small parts, Arrow never holds more than a few."""
    code = """
import pyarrow as pa, pyarrow.parquet as pq, os
rows = 16_000
record = [__import__('json').dumps({'text': os.urandom(1500).hex()}) for _ in range(rows)]
table = pa.table({'key': [f'k{i}' for i in range(rows)], 'record': record})
size = table.nbytes
pq.write_table(table, j.folder / 'large.parquet', row_group_size=m.ROWS_AT_ONCE)
del table, record
before = pa.total_allocated_bytes()
watch = type('W', (), {'most': 0})
read = m._batches
def watched(*a):
    for batch in read(*a):
        watch.most = max(watch.most, pa.total_allocated_bytes() - before)
        yield batch
m._batches = watched
assert len(j.get([f'k{i}' for i in range(0, rows, 1000)])) == 16
print(size, watch.most)
"""
    size, most = map(int, child(code).communicate()[0].split())
    assert size > 4.8e7 and most < size / 4


def test_a_journal_that_cannot_be_written_names_the_variable(tmp_path):
    (tmp_path / "a-file").write_text("")
    with pytest.raises(InputError, match="PERSYN_JOURNAL"):
        Journal("kind", "n", {}, root=tmp_path / "a-file" / "journal")
