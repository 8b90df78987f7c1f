"""Options of readers, and errors."""

import importlib
import re
import sys

import pytest

from solo.config import ConfigError
from solo.data.readers import read, reader, registry
from tests.data.readers.pictures import write


@pytest.mark.parametrize(
    ("name", "options", "limit", "message"),
    [
        ("scens", {}, 1, r"no reader 'scens'; did you mean 'scenes'\?"),
        ("zzz", {}, 1, r"no reader 'zzz'; readers: \['auto', "),
        ("scenes", {}, None, r"'scenes' never ends: set `limit`"),
        ("scenes", {"min_sid": 3}, 1, r"'scenes': unknown option 'min_sid'; did you mean 'min_side'\?"),
        ("topics", {"zzz": 3}, 1, r"unknown option 'zzz'; options: \['split', "),
        ("scenes", {"min_side": "32"}, 1, r"option 'min_side': .*integer; found \"32\""),
        ("digits", {"split": "test"}, 1, r"option 'split': .*'train' or 'held_out'"),
        ("digits", {"sizes": [24, 2.5]}, 1, r"option 'sizes.1': .*integer"),
        ("llava", {}, None, r"option 'path' is missing"),
    ],
)
def test_faults_are_found_before_reading(name, options, limit, message):
    with pytest.raises(ConfigError, match=message):
        read(name, options, limit)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scenes", {"min_side": 60, "max_side": 64}, "max_side 64 is not at least 1.25 times min_side 60"),
        ("scenes", {"max_shapes": 9}, "max_shapes 9 is not within 1 to 6"),
        ("lines", {"min_characters": 9, "max_characters": 5}, "found 9 and 5"),
        ("folder", {"path": "/nowhere"}, "/nowhere does not exist"),
        ("folder", {"path": "/", "template": "it"}, "lacks {name}"),
        ("llava", {"path": "/nowhere.jsonl"}, "/nowhere.jsonl does not exist"),
    ],
)
def test_faults_are_found_on_reading(name, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        next(read(name, options, 1))


def test_two_readers_cannot_share_a_name():
    with pytest.raises(ValueError, match="two readers named 'digits'"):
        reader("digits")(lambda: iter(()))


# --------------------------------------------------------------------------------------- entry points


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package as pip does: its modules, and a .dist-info folder with its entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_READERS", dict(registry._READERS))

    def put(package: str, source: str, **points: str) -> None:
        lines = "".join(f"{name} = {package}:{value}\n" for name, value in points.items())
        about = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n"
        write(
            tmp_path,
            {
                f"{package}.py": source,
                f"{package}-1.0.dist-info/METADATA": about.format(package),
                f"{package}-1.0.dist-info/entry_points.txt": f"[solo.readers]\n{lines}",
            },
        )
        monkeypatch.delitem(sys.modules, package, raising=False)
        importlib.invalidate_caches()

    return put


FUNCTION = """
from solo.data.record import Record, Turn

def shouts(path: str, times: int = 1):
    for number in range(times):
        yield Record(str(number), (Turn("text", (path.upper(),)),))
"""
CLASS = """
from dataclasses import dataclass
from solo.data.readers import Part, Reader, reader
from solo.data.record import Place, Record, Turn

@reader("counted")
@dataclass(frozen=True)
class Counted(Reader):
    upto: int

    def parts(self, size, limit):
        return [Part(str(start), (), (start, min(start + size, self.upto))) for start in range(0, self.upto, size)]

    def read(self, part):
        for number in range(*part.span):
            yield Record(str(number), (Turn("text", (str(number),)),), Place("counted", number + 1))
"""


def test_readers_of_other_packages(install):
    install("shouting_readers", FUNCTION, shouts="shouts")
    install("counting_readers", CLASS, counted="Counted")
    assert {"shouts", "counted"} <= set(registry.reader_names())
    assert [record.turns[0].content for record in read("shouts", {"path": "a", "times": 2})] == [("A",), ("A",)]
    assert [record.id for record in read("counted", {"upto": 5_000}, 4_100)] == [str(n) for n in range(4_100)]
    with pytest.raises(ConfigError, match=r"unknown option 'tims'; did you mean 'times'\?"):
        read("shouts", {"path": "a", "tims": 2})


def test_packages_that_cannot_be_used(install):
    install("broken_readers", "import no_such_module", broken="shouts")
    install("odd_readers", "shouts = 3", odd="shouts", digits="shouts")
    install("shouting_readers", FUNCTION, twice="shouts")
    install("other_readers", FUNCTION, twice="shouts")
    with pytest.raises(ConfigError, match=r"'broken': broken_readers:shouts cannot be imported: No module named"):
        read("broken", {})
    with pytest.raises(ConfigError, match="'odd': odd_readers:shouts is neither a function nor a subclass of Reader"):
        read("odd", {})
    with pytest.raises(ConfigError, match="'twice': the packages other_readers and shouting_readers both offer it"):
        read("twice", {})
    assert len(list(read("digits", {"split": "train"}, 2))) == 2  # this package's own come first
