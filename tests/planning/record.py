"""What a small model's step needs on a TPU, as its compiler has it. To renew the record, after looking at the change:

python -m tests.planning.record
"""

import json
from importlib.metadata import version
from pathlib import Path

from solo.config import load_config
from solo.machines import parse_machine
from solo.planning.forecast import forecast
from solo.planning.program import QUICK

FOLDER = Path(__file__).parent / "golden"
RECORD = FOLDER / "small_v5e-8.json"


def versions() -> dict[str, str]:
    """Of what compiles."""
    return {name: version(name) for name in ("jax", "libtpu")}


def compile_record() -> dict:
    """The chip's compiler options, bytes of a device, and the kinds of collectives, with their bytes."""
    config = load_config(FOLDER / "small.yaml")
    found = forecast(config, config.stages[0], parse_machine("v5e-8"), QUICK)
    kinds: dict[str, int] = {}
    for each in found.collectives:
        kinds[each.name] = kinds.get(each.name, 0) + each.bytes
    return {
        "versions": versions(),
        "options": {option.name: option.value for option in found.machine.chip.compiler_options},
        "memory": {part: getattr(found.program, part) for part in ("arguments", "temporaries")},
        "by_hand": found.by_hand.arguments,
        "collectives": kinds,
    }


if __name__ == "__main__":
    RECORD.write_text(json.dumps(compile_record(), indent=1) + "\n")
    print(RECORD.read_text())
