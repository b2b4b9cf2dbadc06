"""What benchmarks share: their options, their records in one file, and where they were measured."""

import pytest

from analysis.benchmarks import STUDIES
from analysis.benchmarks.recording import collected, four_digits, having, provenance, recorded, write_page
from analysis.experiments.environment import environment


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_benchmark_has_its_options(study, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    pytest.importorskip("jax")
    pytest.importorskip("peft")
    with pytest.raises(SystemExit, match="0"):
        study.command(["--help"])
    printed = capsys.readouterr().out
    assert f"python -m analysis {study.name}" in printed
    assert "--output" in printed


def _measured(config):
    return {"seconds": four_digits({"call": [0.123456, float("nan")]}), "number": config["number"]}


def test_records_are_kept_collected_and_measured_again_if_asked(tmp_path):
    configs = [{"study": "s", "number": number} for number in range(3)]
    records = recorded(_measured, configs, tmp_path / "records", again=False)
    assert [record["results"]["number"] for record in having(records, number=2)] == [2]
    write_page(tmp_path, "page", "# Page\n", records)
    assert (tmp_path / "page.md").read_text() == "# Page\n"
    read = collected(tmp_path / "page.json")
    assert [record["config"] for record in read] == configs
    assert read[0]["results"]["seconds"]["call"][0] == 0.1235
    assert read[0]["environment"] == records[-1]["environment"]

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    recorded(_measured, configs[:1], tmp_path / "records", again=True)
    changed = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert len(changed) == 1


def test_a_page_says_where_it_was_measured():
    known = environment() | {
        "cpu": "some",
        "cpu_count": 2,
        "time": "2026-01-02T03:04:05Z",
        "git": None,
        "python": "3.11",
    }
    text = provenance("python -m analysis x", known | {"versions": {"numpy": "2.0", "torch": None}})
    assert text.startswith("Written by `python -m analysis x` from its records: some, 2 CPUs, 2026-01-02, no checkout")
    assert text.endswith("; Python 3.11, numpy 2.0.")
