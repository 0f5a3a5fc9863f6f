"""Merging, and what is written and compared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from micro import GLUE, ROOT

from spikeprune.config import reference, scalars
from spikeprune.config.load import Config, differences, load, read_resolved, resolve, to_yaml
from spikeprune.config.validation import problems
from spikeprune.errors import InputError

# --- merging ----------------------------------------------------------------------------------------------------------


def test_an_empty_file_gives_the_defaults_and_its_name_to_the_run(empty: Path) -> None:
    config = load(empty)
    assert config.run.dir == "runs/mrpc-empty-s0"
    config.run.dir = Config().run.dir
    assert config == Config()
    assert problems(config) == []


def test_one_configuration_leaves_nothing_to_the_next(empty: Path) -> None:
    first = load(empty)
    load(empty, ["seed=3", "stages.spatial.heads=0.5", "data.corpus=[a]"])
    with pytest.raises(InputError, match="data.corpus: Interpolation key 'nowhere' not found"):
        load(empty, ["seed=4", "data.corpus=${nowhere}"])
    load(empty).data.corpus.append("b")
    assert load(empty) == first


def test_later_wins(write) -> None:
    write("base.yaml", "seed: 1\ndata: {batch_size: 2, max_length: 20}\nstudent: {t_steps: 2, leak: 0.5}")
    file = write(
        "file.yaml",
        """
        base: base.yaml
        task: rte
        preset: small
        data: {batch_size: 3, eval_batch_size: 3, train_limit: 3}
        """,
    )
    write("presets/small.yaml", "data: {eval_batch_size: 4, train_limit: 4}\nseed: 5")
    write("ablations/none.yaml", "data: {train_limit: 5}")
    config, sources = resolve(file, ["data.embedded=[6,7]", "ablation=none"])
    data = config.data
    found = (config.student.leak, data.max_length, data.batch_size, data.eval_batch_size, data.train_limit)
    assert found == (0.5, 20, 3, 4, 5)
    assert (data.embedded, config.seed) == ([6, 7], 5)
    assert config.run.dir == "runs/rte-small-none-s5"
    names = {key: Path(source).name for key, source in sources.items()}
    assert (names["data.max_length"], names["data.batch_size"], names["seed"]) == (
        "base.yaml",
        "file.yaml",
        "small.yaml",
    )
    assert (names["data.train_limit"], sources["data.embedded"]) == ("none.yaml", "command line")


def test_the_command_line_chooses_the_preset(write) -> None:
    file = write("runs/file.yaml", "task: rte\npreset: a")
    write("presets/a.yaml", "data: {batch_size: 8}")
    write("presets/b.yaml", "data: {batch_size: 9}")
    config = load(file, ["task=cola", "preset=b"])
    assert (config.task, config.data.batch_size, config.run.dir) == ("cola", 9, "runs/cola-b-s0")


def test_every_key_is_explained() -> None:
    """Each with one line of help; at most 80 of them."""
    found = reference.entries()
    assert all(entry.help and "\n" not in entry.help for entry in found)
    keys = [entry.key for entry in found]  # to know: a field of several stages is one
    assert len({key.rpartition(".")[2] if key.startswith("stages.") else key for key in keys}) <= 80
    assert len(set(keys)) == len(keys)
    page = reference.markdown()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == page  # else: make docs
    assert all(f"| `{entry.key}` |" in page for entry in found)
    lines = reference.explained(GLUE, ["preset=tiny", "seed=7"])
    assert any(line.startswith("seed: 7 ") and line.endswith("# command line") for line in lines)
    assert any(
        line.startswith("teacher.size: [128, 2, 4, 512, 4000] ") and line.endswith("tiny.yaml") for line in lines
    )


def test_a_preset_beside_the_file_hides_one_in_the_folder_above(write) -> None:
    file = write("x/file.yaml", "preset: a")
    write("presets/a.yaml", "seed: 1")
    write("x/presets/a.yaml", "seed: 2")
    assert load(file).seed == 2


def test_numbers_written_with_an_exponent(write) -> None:
    file = write("file.yaml", "stages: {teacher: {lr: 1e-5}, finetune: {lr: 2E-05}}")
    config = load(file, ["stages.spatial.lr=3e-4", "student.leak=1"])
    stages = config.stages
    assert (stages.teacher.lr, stages.finetune.lr, stages.spatial.lr) == (1e-5, 2e-5, 3e-4)
    assert isinstance(config.student.leak, float)


TEXTS = [
    "007",
    "on",
    "1e5",
    "'a b'",
    "exp #1",
    "a: b",
    "@scratch",
    "%x",
    "&x",
    "*y",
    "[1",
    "{",
    "-",
    " x ",
    "1:30",
    "a=b",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_on_the_command_line_keeps_its_spelling(empty: Path, text: str) -> None:
    config = load(empty, [f"data.dir={text}", f"run.dir={text}", f"data.hub={text}"])
    assert config.data.dir == config.run.dir == config.data.hub == text
    assert load(empty, ["teacher.checkpoint=null"]).teacher.checkpoint is None


def test_a_paths_leading_tilde_is_the_home(empty: Path, write, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load(empty, ["run.dir=~/x", "data.dir=a/~/b", "data.corpus=[~/a.txt,b.txt]", "data.hub=~/x"])
    assert (config.run.dir, config.data.dir) == ("/home/me/x", "a/~/b")
    assert (config.data.corpus, config.data.hub) == (["/home/me/a.txt", "b.txt"], "~/x")
    assert load(write("file.yaml", "run: {dir: ~/y}")).run.dir == "/home/me/y"


def test_files_are_read_by_the_types_of_their_keys(write) -> None:
    """Not as YAML 1.1, to which these are truth values, a sexagesimal number and an octal one."""
    file = write("file.yaml", "data: {dir: 0o17, hub: on}\nteacher: {checkpoint: 1:30}\nstages: {teacher: {lr: 1e-5}}")
    config = load(file)
    assert (config.data.dir, config.data.hub, config.teacher.checkpoint) == ("0o17", "on", "1:30")
    assert config.stages.teacher.lr == 1e-5


def test_sections_and_lists_on_the_command_line(empty: Path) -> None:
    config = load(empty, ["student={leak: 0.5, t_steps: [1, 2, 3]}", "data.corpus=[a.txt]", "data.embedded=[3,4]"])
    assert (config.student.leak, config.student.t_steps) == (0.5, [1, 2, 3])
    assert (config.data.corpus, config.data.embedded) == (["a.txt"], [3, 4])


def test_keys_that_wandb_adds_are_dropped(empty: Path) -> None:
    assert load(empty, ["_wandb={'x': [1", "_wandb.y=2", "seed=3"]).seed == 3


# --- written and compared ---------------------------------------------------------------------------------------------

SPELLINGS = st.one_of(
    st.sampled_from(
        [
            "on",
            "007",
            "1e5",
            "null",
            "None",
            "~",
            "a: b",
            "#x",
            "[1",
            "'q'",
            "{",
            "-",
            "yes",
            "2024-01-01",
            "<<",
            "${x}",
        ]
    ),
    st.text(st.sampled_from("\\${}a"), min_size=1),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1).filter(str.strip),
)


@settings(max_examples=20)  # a tenth of a second each
@given(name=SPELLINGS, lr=st.floats(1e-12, 10), steps=st.lists(st.integers(1, 9), min_size=3, max_size=3))
@example(name="a\x85b", lr=1.0, steps=[1, 2, 3])
@example(name="a\x85", lr=1.0, steps=[1, 2, 3])
def test_what_is_written_reads_back_the_same(tmp_path_factory, name: str, lr: float, steps: list[int]) -> None:
    config = Config(preset="gone")
    config.run.dir, config.data.dir, config.stages.teacher.lr = "runs/x", name, lr
    config.student.t_steps = steps
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert read_resolved(path) == config


@settings(max_examples=20)
@given(
    path=SPELLINGS,
    steps=st.integers(1, 9) | st.lists(st.integers(1, 9), min_size=3, max_size=3),
    lr=st.floats(1e-12, 10),
)
def test_what_the_program_passes_on_reads_back_the_same(tmp_path_factory, path: str, steps, lr: float) -> None:
    """A sweep's trials get their directory and their values on a command line."""
    empty = tmp_path_factory.getbasetemp() / "empty.yaml"
    empty.touch()
    words = [scalars.of_path("run.dir", f"{path}/0"), scalars.of_path("data.dir", path)]
    words += [scalars.spelt("student.t_steps", steps), scalars.spelt("stages.teacher.lr", lr)]
    words += [scalars.spelt("run.tensorboard", True), scalars.spelt("run.checkpoint_every", None)]
    config = load(empty, words)
    assert os.path.normpath(config.run.dir) == os.path.normpath(f"{path}/0")
    assert os.path.normpath(config.data.dir) == os.path.normpath(path)
    found = (config.student.t_steps, config.stages.teacher.lr, config.run.tensorboard, config.run.checkpoint_every)
    assert found == (steps, lr, True, None)


def test_differences_name_key_and_values(empty: Path) -> None:
    old, new = (
        load(empty),
        load(empty, ["seed=3", "student.t_steps=[1,2,3]", "run.log_every=2", "run.validate_every=2"]),
    )
    assert differences(old, old) == {}
    assert differences(old, new) == {"seed": "0 → 3", "student.t_steps": "4 → [1, 2, 3]"}
