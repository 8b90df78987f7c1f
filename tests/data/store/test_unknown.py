import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from solo.config import SequenceConfig
from solo.data.record import Record, Turn
from solo.data.store.part import StoredRecord
from solo.data.store.part_tokens import TokensWriter
from solo.data.text.huggingface import HuggingFaceTokenizer
from solo.data.text.templates import make_template


def test_tokens_for_unknown_characters_are_counted(tmp_path):
    library = tokenizers.Tokenizer(models.BPE({"<unk>": 0, "a": 1, "b": 2}, [], unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["<s>", "</s>", "<unk>"])
    template = make_template(
        HuggingFaceTokenizer(library.to_str(), "<s>", "</s>", None), SequenceConfig(template="solo_pretrain")
    )
    with TokensWriter(tmp_path, "p", "t", template, 2) as writer:
        for number, text in enumerate(("ab", "aжb", "жж")):
            writer.add(StoredRecord(Record(str(number), (Turn("text", (text,)),)), number))
        made = writer.finish(np.zeros(0, bool))
    assert (made.records, made.quarantined, made.text_tokens, made.unknown_tokens) == (3, 0, 10, 3)
