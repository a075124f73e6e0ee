"""Formats C as PostgreSQL does, with its own tool: python3 indent.py LIBRARY FILE...

pg_bsd_indent must be told which names are types.  They come from the sources
and from the debug information of the library that was built of them, so there
is no list to keep.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile

VERSION = "2.1.1"

# Those of PostgreSQL's pgindent, except that comments at the end of a line may
# go beyond its 79 columns, as code may.
OPTIONS = ("-bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 -nfc1 -i4 -l120 -lc79 -lp -lpl "
           "-nip -npro -sac -tpg -ts4").split()

COMPOUND_LITERAL = re.compile(r"\((\w+)\[\]\) \{([^{}()]*)\}")
HIDDEN_LITERAL = re.compile(r"(\w+)__LIT\(([^()]*)\)")


def types_of(library: pathlib.Path, sources: list[pathlib.Path]) -> set[str]:
    debug = subprocess.run(["readelf", "--debug-dump=info", str(library)], capture_output=True,
                           text=True, errors="replace", check=True).stdout
    types = set(re.findall(r"\(DW_TAG_typedef\)\n[^\n]*DW_AT_name[^\n]*: (\w+)\n", debug))
    for source in sources:
        text = source.read_text()
        types.update(re.findall(r"^\} (\w+);", text, re.MULTILINE))
        types.update(re.findall(r"^typedef [^{}();]*\b(\w+);", text, re.MULTILINE))
        types.update(re.findall(r"^typedef [^{};]*\(\*(\w+)\)", text, re.MULTILINE))
    return types


def indented(text: str, types: set[str]) -> str:
    # a name that is a type elsewhere and a variable here
    types = {name for name in types if not re.search(rf"\b(?:char|int)\s+\**{name}\b", text)}
    with tempfile.NamedTemporaryFile("w", prefix="types.") as file:
        file.write("".join(f"{name}\n" for name in sorted(types)))
        file.flush()
        # it does not know compound literals: let it see calls of the same length
        text = COMPOUND_LITERAL.sub(r"\1__LIT(\2)", text)
        done = subprocess.run(["pg_bsd_indent", *OPTIONS, f"-U{file.name}"],
                              input=text, capture_output=True, text=True, check=True)
    if done.stderr:
        raise ValueError(done.stderr.strip())
    text = HIDDEN_LITERAL.sub(r"(\1[]) {\2}", done.stdout)
    # it takes the line of the type for a declaration
    return re.sub(r"^((?:static )?(?:const )?\w+)[ \t]+(\*+)$", r"\1 \2", text, flags=re.MULTILINE)


def main() -> None:
    sources = [pathlib.Path(name) for name in sys.argv[2:]]
    types = types_of(pathlib.Path(sys.argv[1]), sources)
    for source in sources:
        before = source.read_text()
        after = indented(before, types)
        if after != before:
            source.write_text(after)
            print(source)


if __name__ == "__main__":
    main()
