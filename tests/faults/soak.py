"""Long use: memory and open files level off over many epochs, many lines, many trials."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from children import begin, run_command
from micro import GLUE, micro, only, write_sst2

from faults.campaign import Row
from faults.kills import tiny_sweep

GROWTH = 0.10  # of memory in the second half, above which it does not level off


def measure(path: str) -> None:
    """Before a command: every 0.2 s its memory (MB) and open files go into a file, from a thread."""
    import threading

    def watch() -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        with open(path, "a") as file:
            while True:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20
                file.write(json.dumps([round(resident, 1), len(os.listdir("/proc/self/fd"))]) + "\n")
                file.flush()
                time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()


def soaked(name: str, folder: Path, words: list[str], note: str) -> Row:
    """One long command, of which memory and open files in the second half are compared with those at its middle."""
    row, began, measured = Row(name, 0, tried=1), time.monotonic(), folder / "measured"
    child = begin(words, folder / "log", None, measure, (str(measured),))
    child.join()  # as long as it takes
    code = child.exitcode
    row.seconds = time.monotonic() - began
    found = [json.loads(line) for line in measured.read_text().splitlines()]
    middle, half = found[len(found) // 2], found[len(found) // 2 :]
    most = [max(sample[i] for sample in half) for i in (0, 1)]
    row.note = f"{note}; MB {middle[0]:.0f} at half, then at most {most[0]:.0f}; open files {middle[1]}, {most[1]}"
    if code:
        row.lost.append(f"exit code {code}")
    elif most[0] > middle[0] * (1 + GROWTH) or most[1] > middle[1] + 5:
        row.lost.append("does not level off")
    else:
        row.accepted = 1
    return row


def epochs(folder: Path, seed: int, count: int, seconds: float) -> Row:
    glue = write_sst2(folder / "glue", 16, 8)
    words = [*micro(folder / "run", glue), *only(), f"stages.teacher.epochs={count}", "data.batch_size=16"]
    return soaked("soak: epochs", folder, ["train", str(GLUE), *words], f"{count} epochs with a checkpoint each")


def lines(folder: Path, seed: int, count: int, seconds: float) -> Row:
    glue = write_sst2(folder / "glue")
    short = [*only("spatial"), "stages.temporal.t_steps=null", "stages.spatial.epochs=1"]
    run_command(["train", str(GLUE), *micro(folder / "run", glue), *short], folder / "log")
    with (folder / "texts.txt").open("w") as file:
        file.writelines(f"a {'good' if i % 2 else 'bad'} film number {i}\n" for i in range(count))
    words = ["predict", str(folder / "run"), "--file", str(folder / "texts.txt"), "--out", str(folder / "out.csv")]
    row = soaked("soak: predict", folder, words, f"{count} lines")
    found = (folder / "out.csv").read_text().count("\n") - 1 if (folder / "out.csv").exists() else 0
    row.lost += [] if found == count else [f"{found} predictions"]
    return row


def trials(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """A local sweep, whose trials take the teacher over from each other."""
    file = tiny_sweep(folder)
    where = ["--local", "--dir", str(folder / "sweep"), "--trials", str(count), "--jobs", "2"]
    row = soaked("soak: trials", folder, ["sweep", str(file), *where], f"{count} trials, two at a time")
    done = len(json.loads((folder / "sweep" / "results.json").read_text())["trials"]) if not row.lost else 0
    row.lost += [] if done == count else [f"{done} of {count} trials finished"]
    return row
