"""WordNet 3.0's path similarity of words, from a compiled graph inside the package: no downloads, no 3 s of loading.

`wordnet.npz` holds what path similarity needs: lemmas with their synsets, irregular forms, and every synset's hypernyms with
their distances. `python -m zoomearth_jax.rl.rewards.wordnet FOLDER OUT.npz` makes it from WordNet's own files, which `nltk` reads;
our results equal nltk's. WordNet is Princeton University's; its licence is in LICENSE.wordnet beside this file.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from zoomearth_jax.errors import UserError

NOUN = 0
PARTS = "nvar"  # nouns, verbs, adjectives with satellites, adverbs: the order of synsets, too
# endings that each part of speech may take off, and what it puts in their place (WordNet's morphy)
ENDINGS = (
    (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
     ("ies", "y")),
    (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    (),
)  # fmt: skip
FAR = 255  # longer than any path
CHUNK = 256  # pairs at a time: a table of 30 MB


class WordNet:
    """Lemmas, synsets and their hypernyms.

    Synsets are numbers, grouped by part of speech. Words are looked up as they are spelled: a blank is not an underscore, so
    words of several parts have no synsets unless they are written with underscores (as in nltk). `lemmatize(word)` is the
    shortest base form as a noun, the word itself if there is none.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        """Takes the arrays of `build`."""
        self._lemmas = _numbered(arrays["lemmas"])
        self._first, self._synsets = arrays["first"], arrays["synsets"]
        self._ends = arrays["ends"]
        self._ups_first, self._ups, self._steps = arrays["ups_first"], arrays["ups"], arrays["steps"]
        self._irregular: list[dict[str, list[str]]] = [{} for _ in PARTS]
        for line in arrays["irregular"].tobytes().decode().splitlines():
            part, form, *bases = line.split(" ")
            self._irregular[int(part)][form] = bases
        self._known: dict[str, _Word] = {}
        self.lemmatize = functools.cache(self._lemmatize)

    @property
    def lemmas(self) -> list[str]:
        """All lemmas, as they are looked up."""
        return list(self._lemmas)

    def forget(self) -> None:
        """Empties the caches of words, for timings."""
        self._known.clear()
        self.lemmatize.cache_clear()

    def _senses(self, form: str, part: int) -> np.ndarray:
        """Synsets of a lemma as one part of speech."""
        number = self._lemmas.get(form)
        if number is None:
            return np.zeros(0, np.uint32)
        own = self._synsets[self._first[number] : self._first[number + 1]]
        begin = self._ends[part - 1] if part else 0
        return own[(own >= begin) & (own < self._ends[part])]

    def morphy(self, form: str, part: int) -> list[str]:
        """All base forms of a word that are lemmas of a part of speech, the word itself first."""
        bases = self._irregular[part].get(form)
        if bases is None:
            bases = [form[: len(form) - len(old)] + new for old, new in ENDINGS[part] if form.endswith(old)]
        return [base for base in dict.fromkeys([form, *bases]) if self._senses(base, part).size]

    def _lemmatize(self, word: str) -> str:
        return min(self.morphy(word, NOUN), key=len, default=word)

    def synsets(self, word: str) -> np.ndarray:
        """Synsets of a word as all parts of speech and in all base forms."""
        word = word.lower()
        found = [self._senses(base, part) for part in range(len(PARTS)) for base in self.morphy(word, part)]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint32)

    def _word(self, word: str) -> _Word:
        known = self._known.get(word)
        if known is None:
            known = self._known[word] = _Word(self, self.synsets(word))
        return known

    def path_similarity(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """The largest path similarity 1 / (1 + distance) of any synset of one word with any of the other.

        The distance is along hypernyms to a common one; a simulated root joins all but two nouns, at the longest of a
        synset's paths plus one (nltk).

        Args:
            left, right: the words of each pair, lemmatised if they should be.

        Returns:
            float64 [pairs]; 0 where a word has no synset or nothing connects them.
        """
        words = {word: number for number, word in enumerate(dict.fromkeys([*left, *right]))}
        known = [self._word(word) for word in words]
        index = np.array([[words[a], words[b]] for a, b in zip(left, right, strict=True)], np.int64).reshape(-1, 2)
        pairs, where = np.unique(index, axis=0, return_inverse=True)
        root, other_root = np.array([[word.root, word.other_root] for word in known], np.int64).reshape(-1, 2).T
        a, b = pairs.T
        best = np.minimum(other_root[a] + root[b], root[a] + other_root[b])
        self._meet(known, pairs, best)
        return np.where(best < FAR, 1.0 / (1.0 + best), 0.0)[where.reshape(-1)]

    def _meet(self, known: list[_Word], pairs: np.ndarray, best: np.ndarray) -> None:
        """Lowers each pair's distance to the best common hypernym's, through a table [pairs of a chunk, synsets]."""
        count = int(self._ends[-1])
        table = np.full(min(CHUNK, len(pairs)) * count, FAR, np.uint8)
        for begin in range(0, len(pairs), CHUNK):
            chunk = pairs[begin : begin + CHUNK]
            places, steps, _ = _entries([known[i] for i in chunk[:, 0]], count)
            table[places] = steps
            others, more, lengths = _entries([known[i] for i in chunk[:, 1]], count)
            if others.size:
                found = table[others].astype(np.int64)
                meets = np.where(found == FAR, FAR, found + more)
                full = np.flatnonzero(lengths)
                first = np.cumsum(lengths)[full] - lengths[full]
                np.minimum.at(best, begin + full, np.minimum.reduceat(meets, first))
            table[places] = FAR


class _Word:
    """What path similarity needs of a word: hypernyms of all its synsets with the least steps to each, and the least steps
    to the root, of any synset and of those that are no nouns."""

    def __init__(self, graph: WordNet, synsets: np.ndarray):
        ups, steps, root, other = [], [], FAR, FAR
        for synset in synsets.tolist():
            span = slice(graph._ups_first[synset], graph._ups_first[synset + 1])
            ups.append(graph._ups[span])
            steps.append(graph._steps[span])
            above = int(steps[-1].max()) + 1
            root = min(root, above)
            other = min(other, above if synset >= graph._ends[NOUN] else FAR)
        self.root, self.other_root = root, other
        if not ups:
            self.ups, self.steps = np.zeros(0, np.int64), np.zeros(0, np.uint8)
            return
        all_ups, all_steps = np.concatenate(ups), np.concatenate(steps)
        order = np.lexsort((all_steps, all_ups))
        kept = order[np.concatenate([[True], np.diff(all_ups[order].astype(np.int64)) != 0])]
        self.ups, self.steps = all_ups[kept].astype(np.int64), all_steps[kept]


def _entries(words: list[_Word], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in the table and steps of one word a row, and how many each has."""
    lengths = np.array([word.ups.size for word in words])
    rows = np.repeat(np.arange(len(words)), lengths)
    return rows * count + np.concatenate([w.ups for w in words]), np.concatenate([w.steps for w in words]), lengths


def _numbered(blob: np.ndarray) -> dict[str, int]:
    lines = blob.tobytes().decode().split("\n")
    return dict(zip(lines, range(len(lines)), strict=True))


@functools.cache
def wordnet() -> WordNet:
    """The graph in the package."""
    with np.load(str(files("zoomearth_jax.rl.rewards") / "wordnet.npz"), allow_pickle=False) as arrays:
        return WordNet(dict(arrays))


def reader(source: Path):
    """nltk's reader of WordNet's files (data.noun, index.noun, noun.exc ... of Debian's wordnet-base, or nltk's own data).

    Raises:
        UserError: a file is missing.
    """
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    names = [f"{kind}.{part}" for part in ("noun", "verb", "adj", "adv") for kind in ("data", "index")]
    names += [*(f"{part}.exc" for part in ("noun", "verb", "adj", "adv")), "index.sense"]
    missing = [name for name in names if not (source / name).is_file()]
    if missing:
        raise UserError(
            f"{source}: no {missing[0]}; give the folder of WordNet 3.0's files (Debian's packages wordnet-base and "
            "wordnet-sense-index put them into /usr/share/wordnet)"
        )
    # nltk reads only inside its data paths, and wants a list of lexicographer files, which Debian leaves out
    home = Path(tempfile.mkdtemp(prefix="wordnet-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)  # nltk reads on while the process lives
    folder = home / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for name in names:
        shutil.copyfile(source / name, folder / name)
    (folder / "lexnames").write_text("".join(f"{i:02}\tfile.{i:02}\t1\n" for i in range(45)), encoding="ascii")
    nltk.data.path.insert(0, str(home))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other languages are missing
        return WordNetCorpusReader(nltk.data.find("corpora/wordnet"), None)


def build(source: Path, out: Path) -> None:
    """Compiles WordNet's files in `source` into `out`, an .npz."""
    corpus = reader(source)
    synsets = [s for part in PARTS for s in corpus.all_synsets(part)]
    number = {s.name(): i for i, s in enumerate(synsets)}
    ends = np.cumsum([sum(s.pos() in (part, "s" if part == "a" else part) for s in synsets) for part in PARTS])
    ups, steps = [], []
    for synset in synsets:
        paths = synset._shortest_hypernym_paths(False)
        pairs = sorted((number[up.name()], step) for up, step in paths.items())
        ups.append([up for up, _ in pairs])
        steps.append([step for _, step in pairs])
    index = corpus._lemma_pos_offset_map
    lemmas = sorted(index)
    held = [
        sorted({number[corpus.synset_from_pos_and_offset(p, o).name()] for p in PARTS for o in index[lemma].get(p, [])})
        for lemma in lemmas
    ]
    irregular = [
        " ".join([str(part), form, *bases])
        for part, letter in enumerate(PARTS)
        for form, bases in sorted(corpus._exception_map[letter].items())
    ]

    def first(lists):
        return np.cumsum([0, *map(len, lists)]).astype(np.uint32)

    def joined(lists, dtype):
        return np.array([x for each in lists for x in each], dtype)

    np.savez_compressed(
        out,
        lemmas=np.frombuffer("\n".join(lemmas).encode(), np.uint8),
        irregular=np.frombuffer("\n".join(irregular).encode(), np.uint8),
        first=first(held),
        synsets=joined(held, np.uint32),
        ends=ends.astype(np.uint32),
        ups_first=first(ups),
        ups=joined(ups, np.uint32),
        steps=joined(steps, np.uint8),
    )


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:]))
