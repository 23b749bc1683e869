"""WebUI's prompt grammar: text -> networks, `AND` parts, schedules over steps, weighted pieces, chunks of 75 tokens.

WebUI applies the steps in this order: `cut_networks`, `split_and` (positive prompts only), `schedule`, then
`parse_attention` and `chunks` for every text of the schedule. No function here raises on any text, and each takes time
linear in the text's length.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import itemgetter

# --- extra networks and AND -------------------------------------------------------------------------------------------

NETWORK = re.compile(r"<(\w+):([^>]+)>")
"""A tag: its kind, and its arguments between colons. Search only up to the last ">", as `cut_networks` does."""
_AND = re.compile(r"\bAND\b")
_AND_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


@dataclass(frozen=True)
class NetworkTag:
    """`<kind:argument:argument>`, such as `<lora:name:0.8>`; the arguments are as written."""

    kind: str
    args: tuple[str, ...]

    @property
    def off(self) -> bool:
        """Whether its multiplier is 0, so that it has no effect."""
        return len(self.args) == 2 and re.fullmatch(r"0+\.?0*|\.0+", self.args[1]) is not None

    def __str__(self) -> str:
        return f"<{self.kind}:{':'.join(self.args)}>"


def cut_networks(text: str) -> tuple[str, list[NetworkTag]]:
    """Take the `<name:arguments>` tags out of `text`; the spaces around them stay, as in WebUI."""
    end = text.rfind(">") + 1  # nothing can match past the last ">", and searching there takes quadratic time
    tags = [NetworkTag(kind, tuple(args.split(":"))) for kind, args in NETWORK.findall(text, 0, end)]
    return NETWORK.sub("", text[:end]) + text[end:], tags


def has_word(text: str, word: str) -> bool:
    """Return whether the text has the word, in capitals or not, and not just as a part of another word."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def split_and(text: str) -> list[tuple[str, float]]:
    """Split at every upper-case `AND` and read each part's `:weight` (1 if there is none).

    WebUI does this to every positive prompt, so that `a cat:1.2` loses its number even without an `AND`.
    """
    return [_weighted(part) for part in _AND.split(text)]


def _weighted(part: str) -> tuple[str, float]:
    text, colon, number = part.rpartition(":")
    if colon and _AND_WEIGHT.fullmatch(number.strip()):
        return text.rstrip(), float(number)
    return part.rstrip(), 1.0


# --- editing and alternation ------------------------------------------------------------------------------------------

_SYMBOLS = re.compile(r"(?:[^\\\[\]():|]+|\\.)+|[\[\]():|]")
_NUMBER = re.compile(r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*")
_PAIRS = {")": "(", "]": "["}


@dataclass(frozen=True)
class _Edit:
    """`[before:after:number]`: `before` while the step is at most `end`."""

    before: list["_Node"]
    after: list["_Node"]
    end: int

    def at(self, step: int) -> list["_Node"]:
        return self.before if step <= self.end else self.after


@dataclass(frozen=True)
class _Alternation:
    """`[a|b|c]`: the next option at every step."""

    options: list[list["_Node"]]

    def at(self, step: int) -> list["_Node"]:
        return self.options[(step - 1) % len(self.options)]


_Node = str | _Edit | _Alternation


@dataclass(frozen=True)
class _Bracket:
    """An open bracket: its index among the nodes, and those of the `:` and `|` directly inside it."""

    start: int
    marks: list[int] = field(default_factory=list)


class _Clock:
    """Converts the numbers in a prompt into steps of one pass, and collects the steps at which the text changes."""

    def __init__(self, steps: int, hires_steps: int | None, old: bool) -> None:
        self.old = old
        hires_steps = None if old else hires_steps
        self.steps = steps if hires_steps is None else hires_steps
        # The hires pass continues the count: its first step is 1.0 as a fraction, and first-pass steps + 1 as a count.
        self.passed_fraction, self.passed_steps = (0.0, 0) if hires_steps is None else (1.0, steps)
        self.ends = {self.steps}

    def edit_end(self, number: str) -> int:
        """Return the last step of an edit's first text. A number with a "." is a fraction of the steps.

        Before WebUI 1.6 a number was a fraction exactly if it was below 1.
        """
        value = float(number)
        fraction = value < 1 if self.old else "." in number
        value = (value - self.passed_fraction) * self.steps if fraction else value - self.passed_steps
        end = int(max(0, min(self.steps, value)))
        self.ends.update({end} - {0})
        return end

    def every_step(self) -> None:
        self.ends.update(range(1, self.steps + 1))


def schedule(text: str, steps: int, hires_steps: int | None = None, *, old: bool = False) -> list[tuple[int, str]]:
    """Spread prompt editing and alternation over one pass: `(last step, text)` entries in ascending order.

    `steps` counts denoiser calls: the steps of the first pass, twice that for second-order samplers. With
    `hires_steps` (counted the same way) the entries are those of the hires pass, where a fraction N means
    (N - 1) * hires_steps and a count N means N - steps. The last entry ends at the last step of the pass. `old` follows
    WebUI before 1.6: a number below 1 is a fraction, and the hires pass has the first pass's entries.

    A bracket that is not an edit, alternation or emphasis is plain text. A "|" or "\\" in a wrong place makes the
    whole text plain, because WebUI's grammar cannot parse it. Entries with equal texts are kept, because the emphasis
    of conditioning is normalised over all of them.
    """
    clock = _Clock(steps, hires_steps, old)
    nodes = _parse(text, clock)
    if nodes is None:
        return [(clock.steps, text)]
    return [(end, _text_at(nodes, end)) for end in sorted(clock.ends)]


def _parse(text: str, clock: _Clock) -> list[_Node] | None:
    """Parse the text into a tree of edits and alternations; None if WebUI's grammar cannot parse it."""
    symbols: list[str] = _SYMBOLS.findall(text)
    if sum(map(len, symbols)) != len(text):  # a backslash with nothing to escape
        return None
    nodes: list[_Node] = []
    opened: list[_Bracket] = []
    for symbol in symbols:
        nodes.append(symbol)
        if symbol in ("(", "["):
            opened.append(_Bracket(len(nodes) - 1))
        elif symbol in (":", "|") and opened:
            opened[-1].marks.append(len(nodes) - 1)
        elif symbol in _PAIRS and not (opened and _close(nodes, opened.pop(), clock)):
            opened.clear()  # a bracket that stays plain text makes the brackets around it plain, too
    return None if "|" in nodes else _compact(nodes)


def _close(nodes: list[_Node], bracket: _Bracket, clock: _Clock) -> bool:
    """Fold everything from `bracket` to the last node, which closes it, into one node; False if it has no meaning."""
    opening, closing, marks = nodes[bracket.start], nodes[-1], [nodes[mark] for mark in bracket.marks]
    if opening != _PAIRS[str(closing)]:
        return False
    if not marks or (opening == "(" and marks == [":"]):
        return True  # emphasis: its brackets stay in the text for `parse_attention`
    fold = _FOLDS.get(frozenset(map(str, marks))) if opening == "[" else None
    bounds = [bracket.start, *bracket.marks, len(nodes) - 1]
    node = fold and fold([_compact(nodes[left + 1 : right]) for left, right in pairwise(bounds)], clock)
    if node is None:
        return False
    nodes[bracket.start :] = [node]
    return True


def _edit(parts: list[list[_Node]], clock: _Clock) -> _Edit | None:
    match parts:
        case [[*after], [str(number)]]:
            before: list[_Node] = []
        case [[*before], [*after], [str(number)]]:
            pass
        case _:
            return None
    found = _NUMBER.fullmatch(number)
    return _Edit(before, after, clock.edit_end(found[1])) if found else None


def _alternation(parts: list[list[_Node]], clock: _Clock) -> _Alternation:
    clock.every_step()
    return _Alternation(parts)


_FOLDS: dict[frozenset[str], Callable[[list[list[_Node]], _Clock], _Node | None]] = {
    frozenset(":"): _edit,
    frozenset("|"): _alternation,
}
"""What a bracket means, depending on the marks directly inside it."""


def _compact(nodes: list[_Node]) -> list[_Node]:
    """Join neighbouring strings, so that a long text without edits is a single node at every step."""
    compact: list[_Node] = []
    for is_text, group in groupby(nodes, key=lambda node: isinstance(node, str)):
        run = list(group)
        compact += ["".join(map(str, run))] if is_text else run
    return compact


def _text_at(nodes: list[_Node], step: int) -> str:
    words: list[str] = []
    pending = nodes[::-1]  # an explicit stack: the nesting may be deeper than Python's recursion limit
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            words.append(node)
        else:
            pending += reversed(node.at(step))
    return "".join(words)


# --- attention --------------------------------------------------------------------------------------------------------

# A number that float() does not accept, as in (a:1.2.3), is text.
_ATTENTION = re.compile(
    r"\\(?P<escaped>[\\()\[\]]?)|:\s*(?P<weight>[-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|[()\[\]:]|[^\\()\[\]:]+"
)
_BREAK = re.compile(r"\bBREAK\b")
_CLOSING = {")": ("(", 1.1), "]": ("[", 1 / 1.1)}

BREAK = ("BREAK", -1.0)
"""The piece that ends a chunk."""

DEEPEST_BRACKET = 64
"""Brackets nested deeper than this are ignored: 1.1^64 is already 446, and each level costs time for each piece."""


def parse_attention(text: str) -> list[tuple[str, float]]:
    """Read `(x)` (times 1.1), `[x]` (divided by 1.1), `(x:w)` (times w), escaped brackets and `BREAK`.

    Returns `(text, weight)` pieces, with neighbours of equal weight joined. A bracket that is never closed extends to
    the end; a closing bracket that was never opened is text. A `BREAK` is a piece of its own, but inside brackets it
    gets their weight, as in WebUI, and is then just a word.
    """
    pieces: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for match in _ATTENTION.finditer(text):
        symbol, weight = match[0], match["weight"]
        if symbol in opened:
            opened[symbol].append(len(pieces))
        elif weight is not None and opened["("]:
            _weigh(pieces, opened["("], float(weight))
        elif symbol in _CLOSING and opened[_CLOSING[symbol][0]]:
            bracket, factor = _CLOSING[symbol]
            _weigh(pieces, opened[bracket], factor)
        elif match["escaped"] is not None:
            pieces.append((match["escaped"], 1.0))
        else:
            pieces.extend(_broken(symbol))
    for bracket, factor in _CLOSING.values():
        while opened[bracket]:
            _weigh(pieces, opened[bracket], factor)
    merged = [("".join(map(itemgetter(0), group)), weight) for weight, group in groupby(pieces, key=itemgetter(1))]
    return merged or [("", 1.0)]


def _weigh(pieces: list[tuple[str, float]], opened: list[int], factor: float) -> None:
    """Close the innermost of the `opened` brackets: multiply the weight of every piece since it."""
    start = opened.pop()
    if len(opened) < DEEPEST_BRACKET:
        pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]


def _broken(text: str) -> Iterator[tuple[str, float]]:
    """Split the text at each `BREAK` and strip the spaces around it."""
    first, *rest = _BREAK.split(text)
    yield (first.rstrip() if rest else first), 1.0
    for left, part in zip(range(len(rest) - 1, -1, -1), rest, strict=True):
        yield BREAK
        yield (part.strip() if left else part.lstrip()), 1.0


# --- chunks -----------------------------------------------------------------------------------------------------------

START, END, COMMA = 49406, 49407, 267
"""CLIP's token ids for start of text, end of text (also used as padding) and ",</w>"."""

CHUNK_LENGTH = 75
COMMA_REACH = 20
"""How many tokens may move to the next chunk so that the break falls behind a comma."""


@dataclass(frozen=True)
class Chunk:
    """One input of the text encoder: start, 75 tokens padded with the end token, and end, with a weight for each."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


class _Chunker:
    """Collects (token, weight) slots and closes a chunk whenever 75 are full."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.slots: list[tuple[int, float]] = []

    def place(self, tokens: Sequence[int], weight: float) -> None:
        """Add tokens that must stay in one chunk: a single one, or the vectors of an embedding."""
        if len(self.slots) == CHUNK_LENGTH and tokens[0] != COMMA:
            self.break_at_comma()
        if len(self.slots) + len(tokens) > CHUNK_LENGTH:
            self.close()
        self.slots += [(token, weight) for token in tokens]

    def break_at_comma(self) -> None:
        """If a comma is within reach, close the chunk after it and carry the rest over."""
        for position in range(CHUNK_LENGTH - 1, CHUNK_LENGTH - COMMA_REACH - 1, -1):
            if self.slots[position][0] == COMMA:
                carried = self.slots[position + 1 :]
                del self.slots[position + 1 :]
                self.close()
                self.slots = carried
                return

    def close(self) -> None:
        padding = [(END, 1.0)] * (CHUNK_LENGTH - len(self.slots))
        tokens, weights = zip((START, 1.0), *self.slots, *padding, (END, 1.0), strict=True)
        self.chunks.append(Chunk(tokens, weights))
        self.slots = []


def single_tokens(tokens: list[int]) -> Iterable[tuple[int, ...]]:
    """Return each token as its own unit, so that a chunk may end after any of them."""
    return ((token,) for token in tokens)


def chunks(
    pieces: list[tuple[str, float]],
    tokenize: Callable[[str], list[int]],
    units: Callable[[list[int]], Iterable[tuple[int, ...]]] = single_tokens,
) -> list[Chunk]:
    """Pack the pieces of `parse_attention` into chunks of 75 tokens, at least one.

    `tokenize` returns a piece's token ids without start and end; `units` groups those that must stay in one chunk. A
    full chunk breaks after its last comma if that is among its last 20 tokens. `BREAK` closes the chunk, even an empty
    one.
    """
    chunker = _Chunker()
    for piece in pieces:
        if piece == BREAK:
            chunker.close()
            continue
        text, weight = piece
        for unit in units(tokenize(text)):
            chunker.place(unit, weight)
    if chunker.slots or not chunker.chunks:
        chunker.close()
    return chunker.chunks
