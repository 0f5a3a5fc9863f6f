"""The C runtime as a program: what it refuses, how it is built, and that no file does it harm."""

from __future__ import annotations

import copy
import resource
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from runtime_networks import NETWORKS, PLAIN, quantized, sparse
from students import make, prune

from spikeprune.errors import InputError
from spikeprune.runtime import Session, library, to_bytes

pytestmark = pytest.mark.compiler
HERE = Path(library.__file__).parent


@pytest.fixture(scope="module")
def file() -> bytes:
    return to_bytes(prune(make(**NETWORKS["membrane"])))


def sealed(data: bytes | bytearray) -> bytes:
    """With length and checksum that fit."""
    data = bytearray(data)
    struct.pack_into("<Q", data, 8, len(data))
    struct.pack_into("<I", data, 16, zlib.crc32(bytes(data[20:])))
    return bytes(data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coding": "running_mean"}, "the coding running_mean"),
        ({"spikes": "ternary_scaled"}, "ternary_scaled spikes"),
        ({"query": "spiking"}, "a spiking query"),
        ({"coding": "per_step", "feedback": True}, "feedback"),
        ({"dead_zone": True}, "a dead zone"),
        ({"embedding": 8}, "embeddings of another width"),
        ({"t_steps": (200, 4, 2)}, "200 time steps"),
    ],
)
def test_a_student_that_it_does_not_run_is_refused(options, words) -> None:
    with pytest.raises(InputError, match=f"the C runtime does not have {words}"):
        to_bytes(make(**options))


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, b"SPKX", "no model.spk"),
        (4, b"\x02", "another version"),
        (20, b"\x01\x02\x03\x04", "big-endian"),
        (24, b"\x00" * 4, "out of range"),  # vocabulary
        (24, b"\xff\xff\xff\x7f", "another length"),  # more rows than the file has
        (36, b"\xff\xff\xff\xff", "out of range"),  # hidden
        (76, b"\x04", "does not have"),  # 4-bit word embeddings
        (80, b"\x01", "another length|cannot have"),  # tables of a relative position bias
        (84, b"\x01", "does not have"),  # a spiking query
        (128, b"\x00", "out of range"),  # no time steps
        (128 + 48 + 4, b"\xff\xff", "out of range"),  # heads
        (128 + 48 + 12, b"\x07", "out of range"),  # form of a matrix
        (192 + 128, b"\x00\x00\xc0\x7f", "a value that it cannot have"),  # NaN in an embedding
    ],
)
def test_a_file_with_a_wrong_value_is_refused(file, offset, value, words) -> None:
    data = bytearray(file)
    data[offset : offset + len(value)] = value
    with pytest.raises(InputError, match=words):
        Session(sealed(data))


def test_damage_is_refused(file) -> None:
    for place in range(24, len(file), 997):
        data = bytearray(file)
        data[place] ^= 1
        with pytest.raises(InputError, match="damaged, its checksum differs"):
            Session(bytes(data))
    for size in (*range(0, 200, 7), *range(200, len(file), 1999)):
        for cut in (file[:size], sealed(file[: max(size, 24)])):
            with pytest.raises(InputError, match=r"length|no model\.spk|checksum|big-endian"):
                Session(cut)
    with pytest.raises(InputError, match="another length"):
        Session(sealed(file + b"\0" * 64))


def test_bad_input_is_refused(file, tmp_path) -> None:
    session = Session(file, max_tokens=4)
    for ids, segments, words in (
        ([], None, "at least one token"),
        ([1] * 5, None, "at most those that the model was opened for"),
        ([23], None, "none of the model's vocabulary"),
        ([-1], None, "none of the model's vocabulary"),
        ([1], [2], "a segment is none"),
        ([1, 2], [0], "two lists of one length"),
    ):
        with pytest.raises(InputError, match=words):
            session.run(ids, segments)
    with pytest.raises(InputError, match="at least one token"):
        Session(file, max_tokens=0)
    with pytest.raises(InputError, match="cannot be read"):
        Session(tmp_path / "missing.spk")


def test_without_a_compiler_it_is_a_sentence(monkeypatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O3")
    with pytest.raises(InputError, match="no-such-compiler -O3 is not on PATH: install gcc or clang"):
        library.built()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(InputError, match="false does not compile the C runtime"):
        library.compile_library(Path("/nowhere.so"))


# ------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-linux-gnueabihf-gcc"])
def test_no_warning(compiler) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not on PATH")
    for options in ([], ["-DSPIKERUN_SCALAR"]):
        words = [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", *options]
        for name in (*library.PARTS, "main.c"):
            done = subprocess.run([*words, str(HERE / name)], capture_output=True, text=True, encoding="utf-8")
            assert done.returncode == 0, done.stderr


def test_nothing_is_allocated(tmp_path) -> None:
    """The object files need nothing of the C library but these."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not on PATH")
    subprocess.run(["cc", "-std=c99", "-O0", "-c", *(HERE / name for name in library.PARTS)], cwd=tmp_path, check=True)
    command = ["nm", "-u", *sorted(tmp_path.glob("*.o"))]
    found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    names = {line.split()[-1] for line in found.stdout.splitlines() if " U " in line}
    assert names <= {"memcpy", "memset", "memcmp", "sqrtf", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}


def test_the_program_reads_ids_and_words(tmp_path) -> None:
    """`make`, then lines of ids, and English with a vocabulary."""
    if shutil.which("make") is None:
        pytest.skip("make is not on PATH")
    for name in library.FILES:
        shutil.copy(HERE / name, tmp_path)
    subprocess.run(["make", "-s", "-C", tmp_path, "CC=cc -Werror", "CFLAGS=-O1", "ARCH="], check=True)
    student = copy.deepcopy(make())
    (tmp_path / "model.spk").write_bytes(to_bytes(student))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fine", "film", "##s", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")

    def run(text: str, *options: str) -> list[str]:
        command = [tmp_path / "spikerun", tmp_path / "model.spk", *options]
        done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
        return done.stdout.splitlines()[1:] if done.returncode == 0 else [done.stderr.strip()]

    def answers(lines: list[str]) -> list[list[str]]:
        return [line.partition(" ms ")[0].split() for line in lines]

    asked = subprocess.run([tmp_path / "spikerun", "--help"], capture_output=True, text=True, encoding="utf-8")
    assert asked.returncode == 2 and asked.stderr.startswith("error: usage: MODEL ")
    spoken = run("A fine films!\nunheard-of film\n", "--vocab", str(tmp_path / "vocab.txt"))
    listed = run("2 4 5 6 7 8 3\n2 1 1 1 6 3\n")
    assert answers(spoken) == answers(listed) and len(listed) == 2
    session = Session(to_bytes(student))
    answer = session.run([2, 4, 5, 6, 7, 8, 3])
    first = answers(listed)[0]
    assert first[1] == str(answer.logits.argmax())
    assert [float(x) for x in first[3:6]] == pytest.approx(answer.logits.tolist(), abs=1e-6)
    assert first[first.index("additions") + 1] == str(answer.additions.sum())
    segments = session.run([2, 4, 3, 5, 3], [0, 0, 0, 1, 1]).additions.sum()
    assert f"additions {segments} " in run("2 4 3 | 5 3\n", "--counts", "--layers")[0]
    assert run("2 3\n23\n") == ["error: line 2: " + library.library().spikerun_message(13).decode()]
    assert run("1 x\n")[0].startswith("error: line 1: is no list of token ids")
    for text, message in (("films\n\nfilms\n", "line 2: is empty"), ("Äpfel\n", "line 1: is not ASCII")):
        assert run(text, "--vocab", str(tmp_path / "vocab.txt"))[0].startswith(f"error: {message}")


# -------------------------------------------------------------------------------------------------------------- safety


def seeds() -> dict[str, bytes]:
    """A file of each kind of network and matrix."""
    files = {name: to_bytes(make(**options)) for name, options in NETWORKS.items()}
    files |= {f"per_step, {name}": to_bytes(make(coding="per_step", **options)) for name, options in NETWORKS.items()}
    files["leaky"] = to_bytes(make(leak=0.8, **PLAIN))
    files |= {weights: to_bytes(quantized(weights, fold=True)) for weights in ("binary", "ternary", "int8")}
    files["words in bytes"] = to_bytes(quantized("ternary", fold=True, word_table="int8"))
    return files | {form: to_bytes(sparse(), form) for form in ("rows", "lists", "blocks")}


def built_fuzzer(folder: Path) -> list[str]:
    options = ["-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [Path(__file__).with_name("fuzz_spikerun.c"), *(HERE / name for name in library.PARTS)]
    command = ["cc", *options, "-I", str(HERE), *map(str, sources), "-o", str(folder / "fuzz"), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode and "asan" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    names = []
    for i, data in enumerate(seeds().values()):
        names.append(str(folder / f"{i}.spk"))
        Path(names[-1]).write_bytes(data)
    return [str(folder / "fuzz"), *names]


@pytest.mark.slow
def test_ten_thousand_mutants_are_refused_or_run(tmp_path) -> None:
    """No fault that AddressSanitizer or UBSan sees, within four minutes."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("AddressSanitizer needs address space without a limit (ulimit -v)")
    program, *files = built_fuzzer(tmp_path)
    done = subprocess.run([program, "10000", "240", "1", *files], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    count, *codes = map(int, done.stdout.split())
    assert count == 10_000 and codes[0] > 500 and codes[5] > 500  # run; damaged
    assert min(codes[i] for i in (1, 2, 3, 4, 6, 7, 8, 11)) > 0, codes  # every other reason to refuse a file


@pytest.mark.slow
def test_arm_has_the_same_spikes(tmp_path) -> None:
    """Logits and additions of every layer, digit for digit, with vectors that the compiler splits or plain loops."""
    for program in ("arm-linux-gnueabihf-gcc", "qemu-arm", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    for name in library.FILES:
        shutil.copy(HERE / name, tmp_path)
    programs = {
        "arm": ["CC=arm-linux-gnueabihf-gcc", "LDFLAGS=-static", "ARCH="],
        "arm with vectors": ["CC=arm-linux-gnueabihf-gcc", "LDFLAGS=-static", "ARCH=-march=armv7-a -mfpu=neon"],
        "scalar": ["CC=cc", "ARCH=-DSPIKERUN_SCALAR"],
        "native": ["CC=cc"],
    }
    for name, options in programs.items():
        subprocess.run(["make", "-s", "-C", tmp_path, *options], check=True)
        (tmp_path / "spikerun").rename(tmp_path / name)
    ids = np.random.default_rng(0).integers(0, 23, (6, 8))
    lines = "\n".join(" ".join(map(str, row)) for row in ids) + "\n"
    for network, data in seeds().items():
        (tmp_path / "model.spk").write_bytes(data)
        found = {}
        for name in programs:
            emulator = ["qemu-arm"] if name.startswith("arm") else []
            words = [*emulator, tmp_path / name, tmp_path / "model.spk", "--layers"]
            done = subprocess.run(words, input=lines, capture_output=True, text=True, encoding="utf-8", check=True)
            found[name] = [line.partition(" ms ")[0] for line in done.stdout.splitlines()[1:]]
        assert len(found["native"]) == 6 * (1 + 4)
        assert all(lines == found["native"] for lines in found.values()), network
