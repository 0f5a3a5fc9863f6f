"""What a configuration may not be: every problem in one message, each with its key and its source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spikeprune.config.load import load
from spikeprune.errors import InputError


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("student.t_step", "student.t_steps"),
        ("studnet", "student"),
        ("studnet.t_steps", "student.t_steps"),
        ("stages.spatail.scope", "stages.spatial.scope"),
        ("stages.teachr.lr", "stages.teacher.lr"),
        ("t_steps", "student.t_steps or stages.temporal.t_steps"),
        ("batchsize", "data.batch_size"),
    ],
)
def test_a_typo_names_the_nearest_key(empty: Path, key: str, meant: str) -> None:
    assert problems(empty, f"{key}=1").startswith(f"{key}: unknown key (did you mean {meant}")


def test_a_chain_of_bases_ends_after_one(write) -> None:
    write("a.yaml", "seed: 1")
    assert load(write("b.yaml", "base: a.yaml")).seed == 1
    assert "the chain of base files is at most 1 deep" in problems(write("c.yaml", "base: b.yaml"))
    assert "the chain of base files is at most 1 deep" in problems(write("loop.yaml", "base: loop.yaml"))


def test_an_unknown_key_without_likeness_lists_its_section(empty: Path) -> None:
    assert problems(empty, "cost.zzz=1") == "cost.zzz: unknown key; there are model [command line]"


def test_all_problems_in_one_message(write) -> None:
    file = write(
        "file.yaml",
        """
        preset: missing
        sed: 1
        data: {batch_size: many, max_length: null}
        stages: 3
        student: {leek: 1}
        """,
    )
    lines = problems(file, "seed", "student.t_steps=0", "data.corpus=[a", "teacher.checkpoint=None").splitlines()
    expected = [
        "10 problems in the configuration:",
        "seed: write key=value, such as seed=1 [command line]",
        "data.corpus=[a: the value is no YAML",
        "teacher.checkpoint=None: write null for no value [command line]",
        "preset = missing: unknown",
        f"sed: unknown key (did you mean seed?) [{file}]",
        f"data.batch_size = many: must be a whole number [{file}]",
        f"data.max_length = null: must be a whole number [{file}]",
        "stages = 3: is a section, not a value; it holds teacher, general_kd,",
        f"student.leek: unknown key (did you mean student.leak?) [{file}]",
        "student.t_steps = 0: must be a whole number of at least 1",
    ]
    for line in expected:
        assert any(found.strip().startswith(line) for found in lines), line
    assert len(lines) == 1 + 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1.5", "seed = 1.5: must be a whole number"),
        ("seed=null", "seed = null: must be a whole number"),
        ("seed=true", "seed = true: must be a whole number"),
        ("seed=010", "seed = 010: must be a whole number in plain digits, such as 10"),
        ("seed=0x10", "seed = 0x10: must be a whole number in plain digits"),
        ("seed=1_000", "seed = 1_000: must be a whole number in plain digits"),
        ("seed=1:30", "seed = 1:30: must be a whole number in plain digits"),
        ("seed=1e3", "seed = 1e3: must be a whole number in plain digits"),
        ("seed=", "seed = : must be a whole number"),
        ("seed=[1]", "seed = [1]: must be a whole number"),
        (
            "run.checkpoint_every=99999999999999999999",
            "run.checkpoint_every = 99999999999999999999: must be a whole number or null",
        ),
        ("student.t_steps=010", "student.t_steps = 010: must be a whole number of at least 1"),
        ("student.t_steps=[4,010]", "student.t_steps = [4, '010']: must be a whole number of at least 1"),
        ("student.layers=0x2", "student.layers = 0x2: must be a number of layers"),
        ("student.leak=1:30", "student.leak = 1:30: must be a finite number in plain digits, such as 0.5 or 1e-4"),
        ("student.leak=1_0", "student.leak = 1_0: must be a finite number in plain digits"),
        ("student.leak=.inf", "student.leak = .inf: must be a finite number ["),
        ("student.leak=nan", "student.leak = nan: must be a finite number ["),
        ("stages.teacher.lr=1e999", "stages.teacher.lr = 1e999: must be a finite number ["),
        ("student.feedback=yes", "student.feedback = yes: must be true or false"),
        ("student.feedback=on", "student.feedback = on: must be true or false"),
        ("student.feedback=1", "student.feedback = 1: must be true or false"),
        ("run.dir=???", "run.dir = ???: must be text"),
        ("data.dir=", "data.dir = : must not be empty; write null for no value"),
        ("student.leak=much", "student.leak = much: must be a finite number ["),
        ("student.feedback=maybe", "student.feedback = maybe: must be true or false"),
        ("run.checkpoint_every=x", "run.checkpoint_every = x: must be a whole number or null"),
        ("data.corpus=teacher", "data.corpus = teacher: must be a list, each text"),
        ("data=3", "data = 3: is a section, not a value"),
        ("data.dir.x=3", "data.dir.x: unknown key"),
        ("data.batch_size=${nope}", "data.batch_size: Interpolation key 'nope' not found"),
        ("student.feedback=${oc.env:SPIKEPRUNE_TEST}", "student.feedback: is yes: must be true or false"),
        ("data.dir=${", "data.dir = ${: must be text or null"),
        ("seed=${task}", "seed: While dereferencing interpolation"),
        ("--seed=1", "--seed=1: write key=value"),
        ("=1", "=1: write key=value"),
    ],
)
def test_wrong_types(empty: Path, override: str, message: str, monkeypatch) -> None:
    monkeypatch.setenv("SPIKEPRUNE_TEST", "yes")
    assert problems(empty, override).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1\nx: 2", ":2: bad YAML:"),
        ("seed: 1\nseed: 2", ":2: bad YAML: found duplicate key seed"),
        ("- 1", "must hold keys and values"),
        ("seed: 010", "seed = 010: must be a whole number in plain digits, such as 10 or 1000 ["),
        ("seed: 0o7", "seed = 0o7: must be a whole number in plain digits"),
        (
            "run: {checkpoint_every: 1:30}",
            "run.checkpoint_every = 1:30: must be a whole number or null in plain digits",
        ),
        ("student: {feedback: yes}", "student.feedback = yes: must be true or false ["),
        ("seed: !!int 010", ":1: bad YAML: the tag tag:yaml.org,2002:int is not read"),
        ("? [a]\n: 1", ":1: bad YAML: a key must be text"),
        ("tasks: {rte: {seed: 1}}", "tasks: unknown key (did you mean task?)"),
    ],
)
def test_bad_files(write, text: str, message: str) -> None:
    assert message in problems(write("file.yaml", text))


def test_missing_and_unreadable_files(write, tmp_path: Path) -> None:
    write("glue.yaml", "")
    assert problems(tmp_path / "glu.yaml").endswith("has glue.yaml (did you mean glue.yaml?)")
    assert problems(tmp_path) == f"{tmp_path}: Is a directory"
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not a text file in UTF-8" in problems(tmp_path / "bytes.yaml")
    assert "no such file" in problems(write("file.yaml", "base: nowhere.yaml"))


def test_presets_that_cannot_be(write) -> None:
    file = write("file.yaml", "preset: tinny")
    write("presets/tiny.yaml", "preset: other")
    write("presets/large.yaml", "")
    there = "base, minilm, paper, tiny, large (did you mean tiny?)"
    assert problems(file) == f"preset = tinny: unknown; choose from {there}"
    assert "a preset cannot name another one" in problems(file, "preset=tiny")


ACTIVE = ("stages.spatial.epochs=1", "stages.spatial.heads=0.5")
BITS = ("stages.quantize.epochs=1", "stages.quantize.weights=ternary")
COMBINATIONS = [
    (("task=mrcp",), "task = mrcp: choose from"),
    (("stages.spatial.heads=0",), "stages.spatial.heads = 0.0: must be above 0 and at most 1: it is the share kept"),
    (("stages.spatial.ffn=1.1",), "stages.spatial.ffn = 1.1: must be above 0"),
    (("stages.spatial.synapses=0",), "stages.spatial.synapses = 0.0: must be above 0"),
    (("stages.spatial.block=16",), "stages.spatial.block = 16: is for synapses that are removed; set"),
    (
        ("stages.spatial.epochs=1", "stages.spatial.synapses=0.5", *BITS),
        "stages.spatial.synapses = 0.5: single synapses are removed from float weights, not ternary ones",
    ),
    (
        ("stages.spatial.criterion=kwon", "stages.spatial.operations=0.5", "stages.spatial.synapses=0.5"),
        "stages.spatial.synapses = 0.5: criterion kwon removes heads and neurons within",
    ),
    (("student.t_steps=[4,4]",), "student.t_steps = [4, 4]: needs 3 numbers"),
    (("student.t_steps=[4,0,4]",), "student.t_steps = [4, 0, 4]: must be a whole number of at least 1, or a list"),
    (("student.t_steps=4.0",), "student.t_steps = 4.0: must be a whole number"),
    (("student.t_steps={a: 1}",), "student.t_steps = {'a': 1}: must be a whole number"),
    (("student.layers=1", "student.t_steps=[4,4,4]"), "student.t_steps = [4, 4, 4]: needs 2 numbers"),
    (("student.layers=3",), "student.layers = 3: the teacher has 2"),
    (("student.layers=[0,2]",), "student.layers = [0, 2]: the teacher's layers are 0 to 1"),
    (("student.layers=[1,0]",), "student.layers = [1, 0]: must name each layer once, in rising order"),
    (("student.layers=[]",), "student.layers = []: must be a number of layers"),
    (("student.layers=2.5",), "student.layers = 2.5: must be a number of layers"),
    (("teacher.size=[128,2,4]",), "teacher.size = [128, 2, 4]: must be five numbers of at least 1"),
    (
        ("teacher.size=[128,2,3,512,999]",),
        "teacher.size = [128, 2, 3, 512, 999]: its third number, the heads, must divide",
    ),
    (("student.leak=nan",), "student.leak = nan: must be a finite number ["),
    (("student.coding=per_step",), "student.forward = equilibrium: per_step coding has another equilibrium"),
    (("data.source=dir",), "data.source = dir: needs data.dir"),
    (("data.source=hub", "data.dir=x"), "data.dir = x: contradicts data.source = hub"),
    (("data.max_length=4",), "data.max_length = 4: must be at least 8"),
    (("stages.general_kd.epochs=1",), "stages.general_kd.epochs: needs data.corpus"),
    (("stages.finetune.epochs=-1",), "stages.finetune.epochs = -1: must be at least 0"),
    (("stages.quantize.weights=ternery",), "stages.quantize.weights = ternery: choose from"),
    ((*BITS, "stages.quantize.fold=true", "student.theta=tensor"), "stages.quantize.fold = true: student.theta"),
    (("stages.quantize.fold=true",), "stages.quantize.fold = true: nothing is quantized"),
    (("student.feedback=true",), "student.feedback = true: in accumulate the first layer is done before the last"),
    (("student.dead_zone=100",), "student.dead_zone = 100.0: must be at least 0 and below 100"),
    ((*BITS, "stages.quantize.end=1.5"), "stages.quantize.end = 1.5: must be from 0 to 1"),
    (
        ("stages.temporal.epochs=1", "stages.temporal.t_steps=5"),
        "stages.temporal.t_steps = 5: must not be above student.t_steps = 4",
    ),
    (("stages.temporal.epochs=1", "stages.temporal.t_steps=0"), "stages.temporal.t_steps = 0: must be at least 1"),
    (("stages.teacher.epochs=1", "stages.teacher.losses.soft=1"), "stages.teacher.losses.soft = 1.0: does not apply"),
    (("stages.finetune.epochs=1", "stages.finetune.losses={soft: 0, hidden: 0}"), "stages.finetune.losses: every weig"),
    (
        ("stages.finetune.epochs=1", "stages.finetune.losses.additions_limit=0.1"),
        "stages.finetune.losses.additions_limi",
    ),
    (("run.precision=16-mixed", "run.accelerator=cpu"), "run.precision = 16-mixed: needs a GPU"),
    (
        (*ACTIVE, "data.replace_words=0.5", "stages.spatial.losses.hard=1"),
        "stages.spatial.losses.hard = 1.0: the true label is not that of a sentence changed by data.replace_words",
    ),
    (("stages.spatial.epochs=1",), "stages.spatial: the stage would compress nothing; set its heads, ffn or synapses"),
    (("stages.temporal.epochs=1",), "stages.temporal: the stage would compress nothing; set its t_steps"),
    (("stages.quantize.epochs=1",), "stages.quantize: the stage would compress nothing; set its weights"),
    (("stages.spatial.operations=0.5",), "stages.spatial.operations = 0.5: is for stages.spatial.criterion=kwon"),
    (("stages.general_kd.steps=9",), "stages.general_kd.steps = 9: a corpus has no fixed number of steps"),
    (("data.embedded=[5]",), "data.embedded = [5]: must be two numbers of at least 1"),
]


@pytest.mark.parametrize(("overrides", "message"), COMBINATIONS, ids=[" ".join(o) for o, _ in COMBINATIONS])
def test_what_cannot_work_is_one_problem(empty: Path, overrides: tuple[str, ...], message: str) -> None:
    found = problems(empty, *overrides)
    lines = [line for line in found.splitlines() if line.strip().startswith(message)]
    assert len(lines) == 1, found
    assert lines[0].endswith("[command line]")


def test_a_value_that_is_wrong_alone_is_not_reported_in_combination(empty: Path) -> None:
    assert "\n" not in problems(empty, "stages.temporal.t_steps=x", "stages.temporal.epochs=1")
    assert "\n" not in problems(empty, "student.coding=per_step", "student.forward=fast")


def test_compression_that_does_something_is_accepted(empty: Path) -> None:
    load(empty, [*ACTIVE, "stages.temporal.epochs=1", "stages.temporal.t_steps=2", "student.t_steps=[4,2,2]"])
    for weights in ("binary", "ternary", "int8"):
        load(empty, ["stages.quantize.epochs=2", f"stages.quantize.weights={weights}"])
    load(empty, ["student.coding=per_step", "student.forward=spiking", "teacher.checkpoint=x", "student.t_steps=[1,2]"])


@pytest.mark.parametrize("spelt", ["nan", ".nan", "NaN", "inf", "-inf", ".inf", "infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("key", ["stages.finetune.lr", "stages.budget.losses.additions_limit", "student.leak"])
def test_a_number_that_is_not_finite_is_refused(empty, write, key, spelt) -> None:
    """From the command line and from a file; of a key with a range and of one that may be null."""
    tree = spelt
    for name in reversed(key.split(".")):
        tree = f"{{{name}: {tree}}}"
    for path, overrides in ((empty, [f"{key}={spelt}"]), (write("file.yaml", tree), [])):
        with pytest.raises(InputError, match=rf"{key} = {re.escape(spelt)}: must be a finite number( or null)? \["):
            load(path, overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("student.t_steps=.inf", "student.t_steps = .inf: must be a whole number"),
        ("student.layers=[0,.nan]", "student.layers = [0, '.nan']: must be a number of layers"),
        ("student.t_steps=${oc.decode:'[nan,1,2]'}", "student.t_steps = [nan, 1, 2]: must be a whole number"),
        ("stages.teacher.lr=${oc.decode:nan}", "stages.teacher.lr: "),
        ("stages.teacher.lr=${oc.env:SPIKEPRUNE_TEST}", "stages.teacher.lr: is nan: must be a finite number"),
        ("stages.teacher.lr=1" + 400 * "0", "stages.teacher.lr = 1000"),
        ("seed=.inf", "seed = .inf: must be a whole number"),
        ("ablation=${sed}", "ablation: Interpolation key 'sed' not found"),
        ("stages.budget.value=${oc.env:HOME}", "stages.budget.value: While dereferencing interpolation"),
    ],
)
def test_nor_deep_in_a_value_or_by_reference(empty, override, words, monkeypatch) -> None:
    monkeypatch.setenv("SPIKEPRUNE_TEST", "nan")
    with pytest.raises(InputError) as refused:
        load(empty, [override])
    assert words in str(refused.value)
