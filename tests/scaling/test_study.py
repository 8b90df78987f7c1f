"""`solo fit` for several laws together: joint laws, mixtures, learning rates; the page, LaTeX and figures."""

import csv
import json

import numpy as np
import pytest

from solo.cli import main
from solo.scaling.laws.catalogue import CHINCHILLA, SHARE
from tests.evaluation.test_report import Page
from tests.scaling.laws.test_rates import tuned
from tests.scaling.samples import TRUTH, grid


def write(path, columns) -> str:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        out.writerows(zip(*columns.values(), strict=True))
    return str(path)


def designs(path) -> str:
    """Writes runs of two designs; the second needs half of the compute."""
    better = {**TRUTH, "A": TRUTH["A"] * 2 ** -TRUTH["alpha"]}
    parts = [grid(5, 4, noise=0.001), grid(5, 4, noise=0.001, seed=1, truth=better)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("n", "d", "loss")}
    return write(path, {**columns, "design": ["dense_ffn"] * 20 + ["experts"] * 20})


@pytest.fixture(autouse=True)
def few_tests(monkeypatch) -> None:
    monkeypatch.setattr("solo.scaling.laws.joint.TEST_DRAWS", 40)


def test_joint_laws_of_two_designs(tmp_path, capsys) -> None:
    table = designs(tmp_path / "runs.csv")
    words = ["fit", table, "--n", "n", "--d", "d", "--loss", "loss", "--by", "design", "--joint", "--draws", "100"]
    assert main([*words, "--json", str(tmp_path / "o.json"), "--latex", str(tmp_path / "o.tex")]) == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert [fit["group"] for fit in found["fits"]] == ["dense_ffn", "experts"]
    (joint,) = found["joint"]
    assert joint["reference"] == "dense_ffn"
    assert joint["comparisons"][0]["ratio"] == pytest.approx(0.5, rel=0.15)
    low, high = joint["comparisons"][0]["intervals"]["80"]
    assert [model["coefficients"] for model in joint["models"]] == [5, 7, 8, 9, 10]
    words_of_it = f"times the compute (80%: {low:.2f} to {high:.2f})"
    assert words_of_it in capsys.readouterr().out
    latex = (tmp_path / "o.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") >= 4
    assert r"$\alpha$ & " in latex
    assert r"dense\_ffn" in latex
    # The tables are written again, but not over files of others.
    assert main([*words, "--share-across", "exponents", "--latex", str(tmp_path / "o.tex")]) == 0
    (tmp_path / "o.tex").write_text("mine")
    capsys.readouterr()
    assert main([*words, "--latex", str(tmp_path / "o.tex")]) == 2
    assert "did not write it" in capsys.readouterr().err


def test_the_best_mixture(tmp_path, capsys) -> None:
    part = grid(6, 6)
    share = np.array([0.1, 0.4, 0.7, 0.9])[np.arange(36) * 5 % 4]
    at = {"n": part.n, "d": part.d, "share": share}
    text = SHARE.loss({**TRUTH, "F": 0.05, "t": -2.0}, at) * np.exp(np.random.default_rng(0).normal(0, 0.0005, 36))
    caption = SHARE.loss({**TRUTH, "E": 1.2, "F": 0.8, "t": 3.0}, at)
    columns = {"n_active": part.n, "tokens": part.d, "losses.text": text, "losses.caption": caption}
    table = write(tmp_path / "runs.csv", {**columns, "visual_tokens": share * part.d})
    words = ["fit", table, "--law", "share", "--predict", "1e20", "--draws", "100"]
    assert main([*words, "--weights", "text=1,caption=0.5", "--json", str(tmp_path / "o.json")]) == 0
    (mixture,) = json.loads((tmp_path / "o.json").read_text())["mixtures"][0]["mixtures"]
    assert mixture["share"][0] == pytest.approx(np.log(12) / 5, abs=0.03)
    assert main([*words, "--weights", "text=1,speech=1"]) == 2
    assert "'speech' is not one of the losses: losses.text, losses.caption" in capsys.readouterr().err


def test_the_best_learning_rate(tmp_path, capsys) -> None:
    runs, rates = tuned(noise=0.001)
    table = write(tmp_path / "runs.csv", {"n": runs.n, "d": runs.d, "loss": runs.loss, "lr": rates})
    words = ["fit", table, "--n", "n", "--d", "d", "--loss", "loss", "--law", "rate", "--draws", "100"]
    outputs = ["--json", str(tmp_path / "o.json"), "--report", str(tmp_path / "o.html")]
    assert main([*words, "--setting", "lr", *outputs, "--figures", str(tmp_path / "figures")]) == 0
    (found,) = json.loads((tmp_path / "o.json").read_text())["rates"]
    assert found["values"]["a"] == pytest.approx(-0.713, abs=0.05)
    assert "lr = R N^a D^b, from 60 of 60 runs" in capsys.readouterr().out
    assert "Loss against lr" in Page((tmp_path / "o.html").read_text()).text
    name = "part1-loss-against-lr-and-the-best-lr-against-parameters"
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{name}.pdf", f"{name}.svg"}
    assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "var(--" not in (tmp_path / "figures" / f"{name}.svg").read_text()
    # The same command may write them again.
    assert main([*words, "--setting", "lr", "--figures", str(tmp_path / "figures")]) == 0
    assert main([*words, "--setting", "lr", "--where", "d<2e8"]) == 1
    assert "Refused: 1 pairs of size and tokens have 3 values of lr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--joint"], "--joint needs --by COLUMN"),
        (["--reference", "dense"], "need --joint"),
        (["--law", "rate"], "--law rate and --law batch need --setting COLUMN"),
        (["--serve", "1e12"], "--serve needs --predict"),
        (["--weights", "loss=1"], "--weights needs --predict"),
        (["--predict", "1e20", "--weights", "loss"], "--weights 'loss': expected NAME=NUMBER"),
        (
            ["--predict", "1e20", "--where", "design=experts", "--at", "share=0.3"],
            "does not model the variable 'share'",
        ),
        (["--overestimates", "0"], "--overestimates 0: expected a weight, above 0"),
        (["--by", "design", "--joint", "--reference", "moe"], "--reference 'moe': the groups are dense_ffn, experts"),
    ],
)
def test_wrong_use(options, message, tmp_path, capsys) -> None:
    table = designs(tmp_path / "runs.csv")
    assert main(["fit", table, "--n", "n", "--d", "d", "--loss", "loss", "--draws", "100", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("solo: ")
    assert message in error


def test_the_help_lists_every_law() -> None:
    from solo.scaling.command import _LAWS
    from solo.scaling.laws.catalogue import LAWS

    assert tuple(LAWS) == _LAWS
    assert LAWS["chinchilla"] is CHINCHILLA
