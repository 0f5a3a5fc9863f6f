"""A generated corpus for each GLUE task: small, seeded, no download. Its scores are not GLUE scores.

Each rule makes one example for a wanted label, so labels are balanced and known by construction. Every word is as
frequent under one label as under another, in each sentence by itself: only the order of the words, or how the two
sentences fit together, tells the label. A bag of words or the second sentence alone is at chance.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from random import Random

from spikeprune.config.tasks import TRAIN, Task
from spikeprune.errors import InputError

PEOPLE = ("doctor", "pilot", "farmer", "teacher", "lawyer", "nurse")
VERBS = (  # two verbs that mean the same, in the past and plain
    ("praised", "commended", "praise", "commend"),
    ("helped", "assisted", "help", "assist"),
    ("called", "phoned", "call", "phone"),
    ("visited", "saw", "visit", "see"),
    ("hired", "employed", "hire", "employ"),
    ("blamed", "accused", "blame", "accuse"),
)
TIMES = ("on monday", "on friday", "last week", "this morning", "after lunch", "at noon", "in spring", "last night")
PLACES = ("garden", "kitchen", "office", "station", "market", "library")
THINGS = ("lamp", "chair", "clock", "radio", "violin", "carpet")
COLOURS = ("red", "blue", "green", "white", "black", "yellow")

LOOKS = ("young", "old", "tall", "busy", "cheerful")
DEEDS = (("sing", "sang"), ("dance", "danced"), ("wait", "waited"), ("work", "worked"), ("rest", "rested"))
ADJUNCTS = {
    "where": tuple(f"in the {place}" for place in PLACES),
    "when": TIMES,
    "why": ("for money", "for fun", "out of habit", "for charity", "by mistake"),
    "with whom": ("with a friend", "with two guests", "with her sister", "with the twins", "with a stranger"),
}
REASONS = (
    ("thanked", ("grateful", "helpful")),
    ("carried", ("strong", "tired")),
    ("taught", ("wise", "curious")),
    ("feared", ("timid", "cruel")),
)  # who did it because she was the first; to whom it was done, the second

NOUNS = (
    ("key", "keys"), ("cup", "cups"), ("book", "books"), ("dog", "dogs"), ("child", "children"), ("table", "tables"),
    ("picture", "pictures"), ("boat", "boats"), ("guest", "guests"), ("tree", "trees"), ("letter", "letters"),
    ("horse", "horses"),
)  # fmt: skip
BESIDE = ("near", "behind", "beside", "by", "under")
BE = (("is", "are"), ("was", "were"), ("seems", "seem"), ("looks", "look"))
STATES = ("old", "wet", "clean", "small", "strange", "lovely", "quiet", "pale")

GOOD = ("brilliant", "charming", "funny", "moving", "clever", "lovely", "gripping", "fresh")
BAD = ("boring", "awful", "clumsy", "dull", "silly", "weak", "tedious", "stale")
ASPECTS = ("plot", "acting", "music", "script", "ending", "cast", "dialogue", "camera work")
ADVERBS = ("really", "quite", "rather", "truly", "very", "simply")

Sentences = tuple[str, ...]
Rule = Callable[[Random, int], Sentences]


def _other(random: Random, values, *taken):
    return random.choice([value for value in values if value not in taken])


def _cola(random: Random, label: int) -> Sentences:
    """Acceptable iff the verb agrees with the first noun, not with the nearer second one."""
    head, near = random.sample(NOUNS, 2)
    number, attractor = random.randrange(2), random.randrange(2)
    verb = random.choice(BE)[number if label else 1 - number]
    state = random.choice(STATES)
    how = random.choice(("", f"{random.choice(ADVERBS)} "))
    return (f"the {head[number]} {random.choice(BESIDE)} the {near[attractor]} {verb} {how}{state} .",)


def _sst2(random: Random, label: int) -> Sentences:
    """The main clause decides (after "but", or beside "although"), and "not" turns its adjective round."""
    one, two = random.sample(ASPECTS, 2)
    form = random.randrange(3)
    clauses = {}
    for aspect, positive in ((one, 1 - label), (two, label)):
        negated = random.randrange(2)
        words = GOOD if positive != negated else BAD
        clauses[aspect] = f"{aspect} was {'not ' if negated else ''}{random.choice(ADVERBS)} {random.choice(words)}"
    if form == 0:
        return (f"the {clauses[one]} but the {clauses[two]} .",)
    if form == 1:
        return (f"although the {clauses[one]} , the {clauses[two]} .",)
    return (f"the {clauses[two]} although the {clauses[one]} .",)


def _deed(random: Random, agent: str, patient: str, verb: int, time: str) -> str:
    words = f"the {agent} {random.choice(VERBS[verb][:2])} the {patient}"
    return f"{words} {time} ." if random.randrange(2) else f"{time} {words} ."


def _question(random: Random, agent: str, patient: str, verb: int, time: str) -> str:
    words = f"{random.choice(('why did', 'what made'))} the {agent} {random.choice(VERBS[verb][2:])} the {patient}"
    return f"{words} {time} ?" if random.randrange(2) else f"{time} {words} ?"


def _same_deed(say: Callable[..., str]) -> Rule:
    def rule(random: Random, label: int) -> Sentences:
        """The same deed in other words; or the roles swapped, or one of them changed."""
        agent, patient = random.sample(PEOPLE, 2)
        verb, time = random.randrange(len(VERBS)), random.choice(TIMES)
        first = say(random, agent, patient, verb, time)
        if not label:
            change = random.randrange(4)
            if change < 2:
                agent, patient = patient, agent
            elif change == 2:
                agent = _other(random, PEOPLE, agent, patient)
            else:
                patient = _other(random, PEOPLE, agent, patient)
        return first, say(random, agent, patient, verb, time)

    return rule


def _stsb(random: Random, score: int) -> Sentences:
    """The score is the number of the five slots that agree."""
    slots = (PEOPLE[:5], COLOURS[:5], THINGS[:5], PLACES[:5], TIMES[:5])
    first = [random.choice(values) for values in slots]
    same = random.sample(range(5), int(score))
    second = [
        v if i in same else _other(random, values, v) for i, (v, values) in enumerate(zip(first, slots, strict=True))
    ]
    return tuple("the {} saw the {} {} in the {} {} .".format(*words) for words in (first, second))


def _mnli(random: Random, label: int) -> Sentences:
    """Who carried it: entailed of the one who did, contradicted of the one it was done for, open of a third person."""
    people, thing = random.sample(PEOPLE[:5], 2), random.choice(THINGS)
    carried = f"{random.choice(('carried', 'took', 'brought'))} a {thing}"
    first = f"the {random.choice(LOOKS)} {people[0]} {carried} for the {people[1]} {random.choice(TIMES)} ."
    named = (people[0], _other(random, PEOPLE[:5], *people), people[1])[label]
    return first, f"the {named} {carried} ."


def _qnli(random: Random, label: int) -> Sentences:
    """Answered iff the sentence is about the same person and holds an adjunct of the kind asked for."""
    person, (base, past) = random.choice(PEOPLE), random.choice(DEEDS)
    asked, two = random.choice(tuple(ADJUNCTS)), random.sample(tuple(ADJUNCTS), 2)
    about = person
    if label == 0 or random.randrange(2):
        two[0] = asked if asked not in two else two[0]
        about = person if label == 0 else _other(random, PEOPLE, person)
    else:
        two = random.sample([kind for kind in ADJUNCTS if kind != asked], 2)
    random.shuffle(two)
    answer = " ".join(random.choice(ADJUNCTS[kind]) for kind in two)
    return f"{asked} did the {person} {base} ?", f"the {random.choice(LOOKS)} {about} {past} {answer} ."


def _rte(random: Random, label: int) -> Sentences:
    """Entailed of the one who sold; not of the one who bought, nor of a third person."""
    people, thing = random.sample(PEOPLE[:5], 2), random.choice(THINGS)
    first = f"the {random.choice(LOOKS)} {people[0]} sold a {thing} to the {people[1]} {random.choice(TIMES)} ."
    return first, f"the {_named(random, PEOPLE[:5], people, 0, label == 0)} sold a {thing} ."


def _wnli(random: Random, label: int) -> Sentences:
    """ "she" is the first or the second person, as the last word says; the second sentence names her, or the other of
    the two, or a third person."""
    people = random.sample(PEOPLE[:4], 2)
    verb, words = random.choice(REASONS)
    # Not even: "the first named" alone is then right more often than not, a step on the way to learning the rest.
    who = int(random.random() < 0.25)
    reason = f"because she was {random.choice(ADVERBS)} {words[who]}"
    first = f"the {random.choice(LOOKS)} {people[0]} {verb} the {people[1]} {random.choice(TIMES)} {reason} ."
    return first, f"the {_named(random, PEOPLE[:4], people, who, label == 1)} was {words[who]} ."


def _named(random: Random, known: Sequence[str], people: list[str], who: int, right: bool) -> str:
    """The person `who`, or else the other of the two, or one of those `known` but not spoken of."""
    if right:
        return people[who]
    return people[1 - who] if random.randrange(2) else _other(random, known, *people)


RULES: dict[str, Rule] = {
    "cola": _cola,
    "sst2": _sst2,
    "mrpc": _same_deed(_deed),
    "qqp": _same_deed(_question),
    "stsb": _stsb,
    "mnli": _mnli,
    "qnli": _qnli,
    "rte": _rte,
    "wnli": _wnli,
}
CONTEXT = {"qnli": (1,), "mnli": (0,), "rte": (0,), "wnli": (0,)}  # sentences that dev does not share with train
TRIES = 2000


def generate(task: Task, *, seed: int, train: int, dev: int) -> dict[str, tuple[list, list | None, list]]:
    """Split -> (first sentences, second sentences or None, labels): `train` training examples, `dev` in each dev split.

    The same arguments give the same sentences, on every machine. No example occurs twice, and no dev sentence occurs
    in train (for qnli, mnli, rte and wnli: none of the longer sentences, the short ones are few). Labels come in equal
    numbers (to within one); the scores of stsb are 0, 1, …, 5.
    """
    classes = 6 if task.regression else task.num_labels
    for name, size in (("train", train), ("dev", dev)):
        if size < classes:
            raise InputError(
                f"data.embedded = [{train}, {dev}]: {size} {name} examples cannot show the {classes} labels of "
                f"{task.name}"
            )
    sizes = {TRAIN: train, **dict.fromkeys(task.dev, dev)}
    random, seen, splits = Random(f"{task.name}-{seed}"), set(), {}
    for split, size in sizes.items():
        rows = [_example(task, random, i % classes, split == TRAIN, seen, seed) for i in range(size)]
        labels = [float(i % classes) if task.regression else i % classes for i in range(size)]
        order = random.sample(range(size), size)
        second = [rows[i][1] for i in order] if task.pair else None
        splits[split] = ([rows[i][0] for i in order], second, [labels[i] for i in order])
    return splits


def _example(task: Task, random: Random, label: int, train: bool, seen: set, seed: int) -> Sentences:
    if task.name not in RULES:
        raise InputError(f"data.source = embedded: has no sentences for {task.name}; give data.source=dir, or a rule")
    rule = RULES[task.name]
    for _ in range(TRIES):
        sentences = rule(random, label)
        context = [sentences[i] for i in CONTEXT.get(task.name, range(len(sentences)))]
        # Each sentence belongs to train or to dev by its own checksum, so the two never meet at any size.
        if sentences not in seen and all((zlib.crc32(f"{seed}{text}".encode()) % 8 > 0) == train for text in context):
            seen.add(sentences)
            return sentences
    raise InputError(
        f"the embedded corpus of {task.name} has no {len(seen) + 1} different examples; lower data.embedded"
    )
