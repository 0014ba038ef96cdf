"""The catalogue automaton: which token may come next if an answer shall be k unseen titles.

All titles form a trie over tokens. ``left[node]`` counts the titles below a node that are still
allowed for a row; a child is allowed while its count is positive. Banning a title (seen, or already
listed) lowers the counts on its path.

Control-aware decoding ("obey", ours, not the paper's) bans more: before each title, every item with
which the list could no longer be ended so that the request's control is met
(``recnb.controls.can_end``). What cannot end the list now cannot later either (swap the two items),
so such a ban stays.
"""

import numpy as np

from recnb import RecnbError
from recnb.controls import can_end, kinds_of, taken


class CatalogAutomaton:
    """Tokens of all titles and list numbers for one tokenizer; shared by all rows."""

    def __init__(self, codec, catalog):
        self.eos, self.codec, self.catalog = codec.eos, codec, catalog
        self.ending = codec.ending
        if len(catalog) < 2:
            raise RecnbError(
                f"a catalogue of {len(catalog)} item leaves nothing to choose: constrained "
                "decoding needs two"
            )
        lines = [f"1. {title}" for title in catalog.titles[1:]]
        lines = codec.tokenizer(lines, add_special_tokens=False)["input_ids"]
        first = _common_prefix(lines)
        self.titles = [line[len(first) :] for line in lines]
        self.numbers = [first]
        self._number_up_to(3)
        texts = ["\n".join(f"{n}. {title}" for n in (1, 2, 3)) for title in catalog.titles[1:]]
        spelled = codec.tokenizer(texts, add_special_tokens=False)["input_ids"]
        one, two, three = self.numbers
        joined = [one + ids + two + ids + three + ids for ids in self.titles]
        if joined != spelled:
            name = codec.tokenizer.name_or_path or "of this model"
            raise RecnbError(
                f"the tokenizer {name} merges tokens across the lines of a list: constrained "
                "decoding cannot use it; set evaluation.decoding to [free]"
            )
        self._build()

    def _encode(self, text):
        return self.codec.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _number_up_to(self, k):
        """Tokens of a list's numbers up to k, each as it stands behind a title."""
        one, two, last = (self.catalog.titles[i] for i in (1, 2, -1))
        head = self._encode(f"1. {one}")
        for n in range(len(self.numbers) + 1, k + 1):
            tails = [self._encode(f"1. {one}\n{n}. {t}")[len(head) :] for t in (one, two, last)]
            without_title = tails[0][: len(tails[0]) - len(self.titles[0])]
            self.numbers.append(_common_prefix([*tails, without_title]))

    def _build(self):
        children, self.item_at, self.paths = [{}], [0], [()]
        for item, tokens in enumerate(self.titles, start=1):
            node, path = 0, [0]
            for token in tokens:
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                    self.item_at.append(0)
                node = children[node][token]
                path.append(node)
            self.item_at[node] = item
            self.paths.append(np.array(path))
        self.children = children
        self.child_tokens = [np.fromiter(c.keys(), dtype=np.int64, count=len(c)) for c in children]
        self.child_nodes = [np.fromiter(c.values(), dtype=np.int64, count=len(c)) for c in children]
        # What follows a node with neither fork nor end in between: the tokens and the node behind.
        self.ahead, self.after = [()] * len(children), list(range(len(children)))
        for node in reversed(range(1, len(children))):
            if len(children[node]) == 1 and not self.item_at[node]:
                ((token, child),) = children[node].items()
                self.ahead[node], self.after[node] = (token, *self.ahead[child]), self.after[child]
        self.total = np.zeros(len(children), dtype=np.int32)
        for path in self.paths[1:]:
            self.total[path] += 1
        self.path_nodes = np.concatenate(self.paths[1:])
        lengths = [len(path) for path in self.paths[1:]]
        self.path_items = np.repeat(np.arange(1, len(self.paths)), lengths)

    def start(self, k, banned, needs=(), repeats=False):
        """State of one row: a list of ``k`` titles, none of the item ids in ``banned``.

        Where fewer titles than k are left, the list has all of them: a user may have nearly the
        whole of a small catalogue.

        Args:
            needs: what a control asks of the list (``Control.needs``). Where the items left cannot
                meet it, it is dropped: an answer is still k new titles.
            repeats: a title may come again.

        Raises:
            RecnbError: no title is left.
        """
        self._number_up_to(k)
        state = RowState(self, k, repeats)
        if banned := set(banned):
            np.subtract.at(state.left, np.concatenate([self.paths[item] for item in banned]), 1)
        if not state.left[0]:
            raise RecnbError(
                f"a list of {k} new titles was asked for, but the user has all "
                f"{len(self.titles)} titles of the catalogue: leave such users out"
            )
        if not repeats:
            state.k = min(k, int(state.left[0]))
        if needs:
            state.oblige(needs, banned)
        return state


class RowState:
    """Where one row stands in the automaton."""

    def __init__(self, automaton, k, repeats):
        self.a, self.k, self.n, self.repeats = automaton, k, 0, repeats
        self.left = automaton.total.copy()
        self.queue = list(automaton.numbers[0])  # tokens of the list number still to come
        self.node, self.done = 0, False
        self.kinds = None
        self.first = None  # the tokens a title may begin with, until a ban takes one of them away

    def oblige(self, needs, banned):
        """From now on only items with which the list can end as asked."""
        kinds = kinds_of(needs, np.arange(len(self.a.paths)))
        kinds[[0, *banned]] = -1
        self.room = tuple((low, high) for _, low, high in needs)
        self.available = [int((kinds == code).sum()) for code in range(1 << len(needs))]
        if can_end(self._capped(), self.k, self.room):
            self.kinds = kinds
            self._ban_dead_ends()

    def _capped(self):
        return tuple(min(n, self.k) for n in self.available)

    def _ban_dead_ends(self):
        for code, n in enumerate(self.available):
            if not n:
                continue
            self.available[code] -= 1
            possible = can_end(self._capped(), self.k - self.n - 1, taken(self.room, code))
            self.available[code] += 1
            if not possible:
                nodes = self.a.path_nodes[self.kinds[self.a.path_items] == code]
                self.left -= np.bincount(nodes, minlength=len(self.left))
                self.first = None
                self.kinds[self.kinds == code] = -1
                self.available[code] = 0

    def ban(self, item):
        """The item may not come (again)."""
        path = self.a.paths[item]
        self.left[path] -= 1
        if not self.left[path[1]]:
            self.first = None

    def allowed(self):
        """Token ids that may come next, as an int array."""
        if self.queue:
            return np.array([self.queue[0]])
        if self.done:
            return np.array([self.a.eos])
        if not self.node:
            if self.first is None:
                self.first = self.a.child_tokens[0][self.left[self.a.child_nodes[0]] > 0]
            return self.first
        tokens = self.a.child_tokens[self.node]
        if self._untouched(self.node):
            complete = self.a.item_at[self.node]
        else:
            tokens = tokens[self.left[self.a.child_nodes[self.node]] > 0]
            complete = self._complete(self.node)
        if complete:
            tokens = np.concatenate((tokens, (self._behind()[0],)))
        return tokens

    def forced(self):
        """The tokens that must come next, up to the next choice; the state stays as it is."""
        return self._ahead()[0]

    def skip(self):
        """Take the forced tokens and return them."""
        tokens, self.node, ended = self._ahead()
        if ended:
            self._end_title()
        self.queue = []
        return tokens

    def _ahead(self):
        """The forced tokens, the node after them, and whether a title ends among them."""
        tokens, node = list(self.queue), self.node
        if self.done or tokens:
            return tokens, node, False
        while True:
            tokens += self.a.ahead[node]
            node = self.a.after[node]
            # A leaf, reached through allowed tokens, is the usual case: nothing need be counted.
            open_, complete = (), True
            if self.a.children[node]:
                # An untouched node is a fork: the tokens ahead have passed all that are none.
                if node and self._untouched(node):
                    return tokens, node, False
                nodes = self.a.child_nodes[node]
                open_, complete = np.flatnonzero(self.left[nodes] > 0), self._complete(node)
            if len(open_) + complete != 1:
                return tokens, node, False
            if complete:
                tokens += self._behind()
                return tokens, node, True
            tokens.append(int(self.a.child_tokens[node][open_[0]]))
            node = int(nodes[open_[0]])

    def _behind(self):
        """The tokens behind the title under way: the list's end, or the next number."""
        return self.a.ending if self.n + 1 == self.k else self.a.numbers[self.n + 1]

    def _untouched(self, node):
        """None of the titles below a node has been banned, the usual case below the root."""
        return self.left[node] == self.a.total[node]

    def _complete(self, node):
        """The tokens up to a node are a whole allowed title, whatever longer ones lie below it."""
        item = self.a.item_at[node]
        return bool(item) and self.left[node] > self.left[self.a.child_nodes[node]].sum()

    def advance(self, token):
        """Take the token that was chosen; it must be an allowed one."""
        if self.queue:
            self.queue.pop(0)
            return
        if self.done:
            return
        if token in self.a.children[self.node]:
            self.node = self.a.children[self.node][token]
            return
        self._end_title()

    def _end_title(self):
        """The title at this node is listed; the next number's first token was taken with it."""
        item = self.a.item_at[self.node]
        if not self.repeats:
            self.ban(item)
        self.queue = list(self._behind()[1:])
        self.n, self.node = self.n + 1, 0
        if self.n == self.k:
            self.done = True
        else:
            if self.kinds is not None:
                code = int(self.kinds[item])
                self.kinds[item], self.room = -1, taken(self.room, code)
                self.available[code] -= 1
                self._ban_dead_ends()


def _common_prefix(rows):
    prefix = rows[0]
    for row in rows[1:]:
        n = 0
        while n < min(len(prefix), len(row)) and prefix[n] == row[n]:
            n += 1
        prefix = prefix[:n]
    return list(prefix)
