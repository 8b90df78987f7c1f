"""Values of options that have no meaning are refused with the way out, whatever the target."""

import re

import pytest

from solo.config import ConfigError
from solo.launch.options import bucket_name, check_options, label_selector, reservation, seconds, toleration


@pytest.mark.parametrize("text", ["gs://my-bucket", "my-bucket", "gs://my-bucket/"])
def test_a_bucket_has_a_name(text: str) -> None:
    assert bucket_name(text) == "my-bucket"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket": "s3://x"}, "expected gs://BUCKET"),
        ({"bucket": "gs://my bucket"}, "lower-case letters"),
        ({"bucket": "gs://b$(date)"}, "lower-case letters"),
        ({"bucket": "gs://Bucket"}, "lower-case letters"),
        ({"bucket": ""}, "lower-case letters"),
        ({"bucket": "gs://bucket/folder"}, "without a folder"),
        ({"image": "an image; rm -rf /"}, "--image 'an image; rm -rf /': expected an image"),
        ({"image": "--privileged"}, "expected an image"),
        ({"service_account": "a b"}, "--service-account"),
        ({"namespace": "A"}, "--namespace"),
        ({"queue": "a queue"}, "--queue"),
        ({"priority": "very high"}, "--priority"),
        ({"zone": "us-east5"}, "such as us-east5-a"),
        ({"project": "my project"}, "--project"),
        ({"partition": "a\n#SBATCH --nodes=9"}, "--partition"),
        ({"time": ""}, "--time"),
        ({"spot": True, "reserved": True}, "--spot and --reserved exclude each other"),
        ({"spot": True, "reservation": "r"}, "--spot and --reservation exclude each other"),
        ({"reserved": True, "reservation": "r"}, "--reserved and --reservation exclude each other"),
        ({"grace_seconds": 0}, "--grace-seconds 0: expected at least 1"),
        ({"sbatch": ["exclusive"]}, "as in --sbatch=--exclusive"),
        ({"sbatch": ["--a\n--b"]}, "as in --sbatch=--exclusive"),
        ({"wait": "soon"}, "--wait 'soon': expected a duration"),
        ({"max_duration": "0h"}, "--max-duration '0h': expected a duration above 0"),
        ({"node_selector": ["pool"]}, "expected LABEL=VALUE"),
        ({"node_selector": ["pool=a b"]}, "expected LABEL=VALUE"),
        ({"node_selector": ["pool=a", "pool=b"]}, "use pool=VALUE,VALUE"),
        ({"toleration": ["team=vlm:Never"]}, "effects: NoSchedule, PreferNoSchedule, NoExecute"),
        ({"toleration": ["a team"]}, "expected KEY[=VALUE][:EFFECT]"),
    ],
)
def test_a_value_without_a_meaning_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_options(options)


def test_usual_values_are_accepted() -> None:
    check_options(
        {
            "bucket": "gs://my_bucket.example-1",
            "image": "us-docker.pkg.dev/p/r/solo@sha256:0123456789abcdef",
            "service_account": "trainer@my-project.iam.gserviceaccount.com",
            "project": "example.com:my-project",
            "zone": "europe-west4-b",
            "constraint": "[a100*2&h100*2]",
            "sbatch": ["--exclusive", "--comment='two words'"],
            "reserved": True,
            "spot": False,
            "reservation": None,
        }
    )


def test_durations_are_seconds() -> None:
    assert [seconds("wait", text) for text in ("45", "45s", "90m", "6h", "2d")] == [45, 45, 5400, 21600, 172800]


def test_reservations_of_other_projects_have_an_owner() -> None:
    assert reservation("mine") == ("mine", None)
    assert reservation("projects/owner-1/reservations/theirs") == ("theirs", "owner-1")
    with pytest.raises(ConfigError, match="projects/OWNER/reservations/NAME"):
        reservation("owner/theirs")


def test_labels_and_tolerations() -> None:
    assert label_selector(["pool=a", "topology.kubernetes.io/zone=us-east5-a,us-east5-b"]) == {
        "pool": ("a",),
        "topology.kubernetes.io/zone": ("us-east5-a", "us-east5-b"),
    }
    assert toleration("team") == {"key": "team", "operator": "Exists"}
    assert toleration("team=vlm:NoSchedule") == {
        "key": "team",
        "operator": "Equal",
        "value": "vlm",
        "effect": "NoSchedule",
    }
    assert toleration("example.com/team:NoExecute") == {
        "key": "example.com/team",
        "operator": "Exists",
        "effect": "NoExecute",
    }
