"""Writes the upgrade script that makes the latest release's SQL objects those of extension/api/.

It compares statements.  New ones are taken over in their order; functions and
views that are there already are replaced.  Anything else, such as a table that
got a column, is for a person: extension/upgrades/by_hand/FROM--TO.sql goes
first, and says with lines "-- instead of: BEGINNING" which statements of
extension/api/ it stands for, or "-- without: BEGINNING" which ones of the
released version it removes.  That nothing is forgotten, grants for instance, is
shown by the test that compares catalogs.  Statements after a line "-- in every upgrade" are
taken over even if they are not new.
"""

import pathlib
import re

TOKEN = re.compile(r"""
    --[^\n]*            # a comment
  | '(?:[^']|'')*'      # a string
  | "(?:[^"]|"")*"      # a quoted name
  | \$(\w*)\$           # the beginning of a dollar-quoted string
  | ;
""", re.X)
REPLACEABLE = re.compile(r"CREATE (FUNCTION|VIEW) ")
ALWAYS = "-- in every upgrade"


def statements(text):
    """The statements of a script, each with the comments before it."""
    begin = position = 0
    while match := TOKEN.search(text, position):
        position = match.end()
        if match[0].startswith("$"):
            position = text.index(match[0], position) + len(match[0])
        elif match[0] == ";":
            yield text[begin:position].strip()
            begin = position


def code(statement):
    """A statement without the comments before it, and with single spaces, to compare it by."""
    lines = statement.split("\n")
    while lines and (not lines[0].strip() or lines[0].lstrip().startswith("--")):
        lines.pop(0)
    return re.sub(r"\s+", " ", "\n".join(lines))


def identity(statement):
    """What a CREATE FUNCTION or CREATE VIEW makes: its name, and the types of a function's arguments."""
    text = code(statement)
    if not REPLACEABLE.match(text):
        return None
    head = re.match(r"CREATE (?:FUNCTION|VIEW) [\w.]+", text)[0]
    if "FUNCTION" not in head:
        return head
    return head + str(argument_types(text[len(head):]))


def argument_types(text):
    """IN arguments' types of "(name type DEFAULT value, …) RETURNS …"."""
    depth, arguments, begin = 0, [], 1
    for match in re.finditer(r"'(?:[^']|'')*'|[(),]", text):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if match[0] == "," and depth == 1 or match[0] == ")" and depth == 0:
            arguments.append(text[begin:match.start()].strip())
            begin = match.end()
        if match[0] == ")" and depth == 0:
            break
    return [re.sub(r" DEFAULT .*", "", a).split(" ", 1)[-1] for a in arguments if a and not a.startswith("OUT ")]


def compose(old_text, new_text, by_hand):
    old = list(statements(old_text))
    new = list(statements(new_text))
    old_code, new_code = {code(s) for s in old}, {code(s) for s in new}
    present = {identity(s) for s in old} - {None}
    instead = [re.sub(r"\s+", " ", line) for line in re.findall(r"^-- instead of: (.*)$", by_hand, re.M)]
    without = [re.sub(r"\s+", " ", line) for line in re.findall(r"^-- without: (.*)$", by_hand, re.M)]
    replaced = {identity(s) for s in new} - {None}
    gone = [s for s in old if code(s).startswith("CREATE ") and code(s) not in new_code and identity(s) not in replaced
            and not code(s).startswith(tuple(without + instead) or ("\0",))]
    if gone:
        raise SystemExit("by hand, please, what becomes of:\n" + "\n".join(code(s)[:200] for s in gone))

    yield by_hand.strip()
    for statement in new:
        text = code(statement)
        if text.startswith(tuple(instead) or ("\0",)):
            continue
        if text in old_code:
            if ALWAYS in statement.split("\n"):
                yield statement
        elif identity(statement) in present:
            yield re.sub(r"^CREATE (FUNCTION|VIEW) ", r"CREATE OR REPLACE \1 ", statement, count=1, flags=re.M)
        else:
            yield statement


def version(top):
    """That of the sources."""
    return re.search(r"^EXTVERSION\s*=\s*(\S+)", (top / "Makefile").read_text(), re.M)[1]


def upgrade(top):
    """The path of the script that upgrades the latest release, and its text; None if there is nothing later."""
    after = version(top)
    released = [re.search(r"--([\d.]+)\.sql$", path.name)[1] for path in (top / "extension/released").glob("*.sql")]
    if after in released or not released:
        return None
    before = max(released, key=lambda version: [int(part) for part in version.split(".")])
    old = (top / f"extension/released/leasehold--{before}.sql").read_text()
    new = "".join(path.read_text() for path in sorted((top / "extension/api").glob("*.sql")))
    by_hand = top / f"extension/upgrades/by_hand/{before}--{after}.sql"
    parts = compose(old, new, by_hand.read_text() if by_hand.exists() else "")
    guard = '\\echo Use "ALTER EXTENSION leasehold UPDATE" to load this file. \\quit'
    return top / f"extension/upgrades/leasehold--{before}--{after}.sql", "\n\n".join([guard, *filter(None, parts)]) + "\n"


if __name__ == "__main__":
    if made := upgrade(pathlib.Path(__file__).resolve().parents[2]):
        made[0].write_text(made[1])
        print(made[0].name)
