"""The stages of `auto`: commands that follow from what is asked for, and which are done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dynquant.auto.record import Journal, read_record
from dynquant.auto.stages import MODEL, Asked, Stage, stages_of
from dynquant.errors import ConvertError
from dynquant.recipe.target import Target

ASKED = Asked("m/tiny", Path("o.gguf"), Target(size=9), ("--target-size", "9"), Path())


def words(asked: Asked) -> dict[str, str]:
    return {stage.name: stage.text for stage in stages_of(asked)}


def test_each_stage_reads_what_those_before_it_write() -> None:
    asked = replace(ASKED, texts=(Path("t"),), tuning=(Path("u"),), calibration=(Path("c"),))
    there: set[Path | str] = {MODEL, *asked.texts, *asked.tuning, *asked.calibration}
    for stage in stages_of(asked):
        assert there.issuperset(stage.reads), stage.name
        there.update(stage.writes)
    written = [path for stage in stages_of(asked) for path in stage.writes]
    assert len(set(written)) == len(written)


def test_commands_are_those_that_a_user_would_type() -> None:
    found = words(ASKED)
    assert list(found) == ["importance", "sensitivity", "solve", "convert", "report"]
    assert found["importance"] == ("dynquant imatrix m/tiny --moments layers -o tiny.imatrix.gguf")
    importance = "--imatrix tiny.imatrix.gguf --moments tiny.moments.safetensors"
    assert found["sensitivity"] == (
        f"dynquant sensitivity m/tiny {importance} -o tiny.sensitivity.json"
    )
    assert found["solve"] == (
        f"dynquant solve m/tiny {importance} --sensitivity tiny.sensitivity.json --target-size 9"
        " -o o.yaml"
    )
    assert found["convert"] == f"dynquant convert m/tiny --recipe o.yaml {importance} -o o.gguf"


def test_a_text_adds_the_evaluation_whose_document_is_kept() -> None:
    found = words(replace(ASKED, texts=(Path("t"),)))
    assert found["evaluate"].startswith("dynquant eval o.gguf --reference m/tiny --text t")
    assert found["evaluate"].endswith("--json --html o.eval.html > o.eval.json")


def test_a_text_to_tune_on_measures_and_compares_around_the_size() -> None:
    found = words(replace(ASKED, tuning=(Path("u"),)))
    assert "--measure --target-size 9 --text u" in found["sensitivity"]
    assert "-o o.sensitivity.json" in found["sensitivity"]
    assert "--target-size 9 --verify --text u" in found["solve"]


@pytest.mark.parametrize(
    ("skipped", "left"),
    [
        ("importance", ["sensitivity", "solve", "convert", "evaluate", "report"]),
        ("sensitivity", ["importance", "sensitivity", "solve", "convert", "evaluate", "report"]),
        ("evaluate", ["importance", "sensitivity", "solve", "convert", "report"]),
        ("report", ["importance", "sensitivity", "solve", "convert", "evaluate"]),
    ],
)
def test_a_stage_can_be_left_out(skipped: str, left: list[str]) -> None:
    asked = replace(ASKED, texts=(Path("t"),), tuning=(Path("u"),), skip=frozenset({skipped}))
    assert list(words(asked)) == left


def test_parts_of_stages_can_be_left_out() -> None:
    every = frozenset({"feedback", "measure", "verify", "sensitivity"})
    found = words(replace(ASKED, tuning=(Path("u"),), skip=every))
    assert "sensitivity" not in found
    assert "moments" not in " ".join(found.values())
    assert "--verify" not in found["solve"]


def test_importance_of_the_user_is_taken() -> None:
    found = words(replace(ASKED, imatrix=Path("i.gguf")))
    assert "importance" not in found
    assert "--imatrix i.gguf --recipe" not in found["convert"]
    assert "--imatrix i.gguf -o o.gguf" in found["convert"]


class Bench:
    """Two stages in a folder, the second of which reads what the first writes."""

    def __init__(self, folder: Path) -> None:
        self.a, self.b = folder / "a", folder / "b"
        self.fact = "1"
        self.stages = [
            self._stage("first", (MODEL,), self.a),
            self._stage("second", (self.a,), self.b),
        ]
        self.record = folder / "r.json"

    @staticmethod
    def _stage(name: str, reads: tuple[Path | str, ...], out: Path) -> Stage:
        return Stage(name, ("do", name, str(out)), (), reads, (out,))

    @property
    def journal(self) -> Journal:
        return Journal(self.record, "model", self.fact)

    def done(self) -> list[bool]:
        return [s.is_done for s in self.journal.states(self.stages).values()]

    def in_way(self) -> dict[str, str]:
        states = self.journal.states(self.stages).values()
        return {path.name: reason for state in states for path, reason in state.in_way.items()}

    def do(self, number: int, content: str = "x") -> None:
        stage, journal = self.stages[number], self.journal
        journal.begin(stage)
        stage.writes[0].write_text(content)
        journal.finish(stage)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_stages_are_done_one_after_the_other(bench: Bench) -> None:
    assert bench.done() == [False, False]
    bench.do(0)
    assert bench.done() == [True, False]
    bench.do(1)
    assert bench.done() == [True, True]
    assert bench.in_way() == {}


def test_a_changed_model_makes_all_stages_again_and_replaces_its_own_files(bench: Bench) -> None:
    bench.do(0)
    bench.do(1)
    bench.fact = "2"
    assert bench.done() == [False, False]
    assert bench.in_way() == {}


def test_an_output_that_was_changed_is_in_the_way(bench: Bench) -> None:
    bench.do(0)
    bench.do(1)
    bench.b.write_text("by hand")
    assert bench.done() == [True, False]
    assert bench.in_way() == {"b": "edited"}


def test_an_edit_is_in_the_way_and_not_what_was_made_of_it(bench: Bench) -> None:
    bench.do(0)
    bench.do(1)
    bench.a.write_text("by hand")
    assert bench.done() == [False, False]
    assert bench.in_way() == {"a": "edited"}


def test_outputs_of_other_options_are_in_the_way(bench: Bench) -> None:
    bench.do(0)
    bench.stages[0] = replace(bench.stages[0], arguments=("do", "otherwise", str(bench.a)))
    assert bench.in_way() == {"a": "other"}


def test_a_file_of_somebody_else_is_in_the_way(bench: Bench) -> None:
    bench.b.write_text("by hand")
    assert bench.in_way() == {"b": "unknown"}


def test_a_missing_output_is_made_again_and_what_reads_it_where_it_differs(bench: Bench) -> None:
    bench.do(0)
    bench.do(1)
    bench.a.unlink()
    assert bench.done() == [False, False]
    assert bench.in_way() == {}
    bench.do(0)
    assert bench.done() == [True, True]
    bench.a.unlink()
    bench.do(0, "other")
    assert bench.done() == [True, False]
    assert bench.in_way() == {}


def test_a_file_that_appears_after_a_stage_was_killed_is_not_its_output(bench: Bench) -> None:
    bench.journal.begin(bench.stages[0])
    assert bench.done() == [False, False]
    bench.a.write_text("of another command")
    assert bench.done() == [False, False]
    assert bench.in_way() == {"a": "unknown"}


def test_a_part_of_the_outputs_of_a_killed_stage_is_its_own(bench: Bench) -> None:
    c = bench.a.with_name("c")
    bench.stages[0] = replace(bench.stages[0], writes=(bench.a, c))
    bench.journal.begin(bench.stages[0])
    c.write_text("complete")
    state = bench.journal.state(bench.stages[0])
    assert (state.is_done, state.is_ours, state.resumes, state.in_way) == (False, True, True, {})


def test_equal_names_in_two_folders_are_two_outputs(bench: Bench, tmp_path: Path) -> None:
    bench.do(0)
    other = tmp_path / "other"
    other.mkdir()
    stage = replace(bench.stages[0], writes=(other / "a",), arguments=("do", "more"))
    journal = bench.journal
    journal.begin(stage)
    stage.writes[0].write_text("x")
    journal.finish(stage)
    assert bench.done() == [True, False]


def test_a_folder_may_be_moved(bench: Bench, tmp_path: Path) -> None:
    bench.do(0)
    bench.do(1)
    other = tmp_path / "other"
    other.mkdir()
    for path in (bench.a, bench.b, bench.record):
        path.rename(other / path.name)
    assert Bench(other).done() == [True, True]


def test_a_damaged_record_is_one_error(bench: Bench) -> None:
    bench.record.write_text('{"auto": 1, "stages": 3}')
    with pytest.raises(ConvertError, match="'stages' is 3"):
        read_record(bench.record)
