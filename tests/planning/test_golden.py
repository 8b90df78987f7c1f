"""The step of a small model, compiled for eight absent v5e chips, against recorded memory and collectives."""

import importlib.util
import json

import pytest

from tests.planning.record import RECORD, compile_record, versions

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("the compiler for TPUs is not installed: pip install 'solo-vlm[tpu]'", allow_module_level=True)

RENEW = "if it is meant, renew the record: python -m tests.planning.record"


@pytest.mark.slow
def test_a_tpu_step_needs_no_more_memory_and_no_other_collectives_than_before() -> None:
    known = json.loads(RECORD.read_text())
    if known["versions"] != versions():
        pytest.skip(f"the record was made with {known['versions']}, here are {versions()}; {RENEW}")
    found = compile_record()
    assert found["options"] == known["options"], f"the chip's compiler options changed; {RENEW}"
    for part, size in known["memory"].items():
        assert found["memory"][part] <= 1.05 * size, f"{part} rose by 5% or more; {RENEW}"
    new = set(found["collectives"]) - set(known["collectives"])
    assert not new, f"collectives of a new kind: {sorted(new)}; {RENEW}"
    assert found["memory"]["arguments"] == pytest.approx(found["by_hand"], rel=0.01)
