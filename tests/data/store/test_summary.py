"""What preparation says of a source, on a table of rated turns."""

import pyarrow as pa
import pyarrow.parquet as pq

from solo.config import parse_config
from solo.data.readers import Unreadable
from solo.data.record import Place, Record, Turn
from solo.data.store.prepare import prepare
from solo.data.store.summary import quarantine_lines
from tests.data.store.parts import write_source


def test_pieces_that_are_left_out_are_counted_over_all_parts(tmp_path):
    turns = [{"user": f"question {n}", "assistant": "an answer"} for n in range(3)]
    columns = {"texts": [turns] * 50, "relevance_ratings": [[5, 1, 2]] * 50, "source": ["s"] * 50}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=10)
    options = {"path": str(tmp_path / "a.parquet"), "min_ratings": {"relevance": 2}}
    stage = {"name": "a", "mixture": {"rated": 1}, "steps": 1, "batch_rows": 1, "optimizer": {"learning_rate": 0.1}}
    config = parse_config(
        {
            "name": "test",
            "data": {
                "folder": str(tmp_path / "data"),
                "tokenizer": {"vocab_size": 280},
                "records_per_shard": 10,
                "sources": {"rated": {"reader": "parquet", "options": options}},
            },
            "model": {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32},
            "stages": [stage],
        }
    )
    said: list[str] = []
    prepare(config, said.append)
    assert "  50 turns with relevance below 2 are left out of records of rated" in said
    assert f"  key 'source' of rated is not read; it is first in {tmp_path}/a.parquet:1" in said


def test_names_that_are_no_text_can_be_printed(tmp_path):
    bad = Unreadable("\udcff.txt", "its text is empty", Place("\udcff.txt", 1))
    source = write_source(tmp_path, [bad, Record("a", (Turn("text", ("a",)),), Place("a.txt"))])
    (line,) = quarantine_lines(source)
    assert line.encode() == rb"  1 left out, such as \udcff.txt: its text is empty (\udcff.txt:1)"
