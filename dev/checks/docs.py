"""The documentation: its examples run, and it says what the catalog says.

A page is turned into one script for psql, line for line: what is between
```sql and ``` stays, everything else becomes empty, so the number of a line in
an error is the number in the page.  Pages run from top to bottom, each in a
database of its own.  The first line of an example says who runs it: `-- as app`
(see LOGINS).  Words after ```sql:

    fails            a statement fails, and the output shows how
    untested REASON  it is not run, for this reason

A ```text block that follows is the output.  Ids, times and the widths of columns
are not compared.  The address 127.0.0.1:8080 is that of the double of a
provider, whose token is in the file `boxes`.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from jobs import Job, Outcome, Place, Program, since
from suites import Server, Suite

PAGES = ("README.md", "docs/*.md")
INSTALLS = "README.md"  # the page that makes extension and roles itself

# Name, and the group that it is in.
ROLES = {"ops": "leasehold_admin", "app": "leasehold_app", "other": "leasehold_app",
         "auditor": "leasehold_auditor", "monitor": "pg_monitor"}
LOGINS = {"a superuser": "postgres"} | {role: role for role in ROLES}

DOUBLE = "127.0.0.1:8080"
MARK = "@@ block"

MASKS = [
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?([+-]\d\d(:?\d\d)?)?"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\d\.\d+\b"), "TIME"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "TOKEN"),
    (re.compile(r"\bsbx-\d+-[0-9a-f]+\b"), "RESOURCE"),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"-{2,}"), "-"),
]


@dataclass
class Block:
    """An example: its lines, counted from 1, without the fences."""

    first: int
    last: int
    role: str
    fails: bool
    text: str
    output: list[str] | None = None


@dataclass
class Page:
    """A page, and what is wrong with how it is written."""

    name: str
    lines: list[str]
    blocks: list[Block] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_page(place: Place, name: str) -> Page:
    page = Page(name, (place.source / name).read_text(encoding="utf-8").splitlines())
    number = 0
    while number < len(page.lines):
        number += 1
        if not (fence := re.match(r"```(.*)", page.lines[number - 1])):
            continue
        try:
            end = page.lines.index("```", number) + 1
        except ValueError:
            page.problems.append(f"{name}:{number}: the block does not end")
            break
        body = page.lines[number:end - 1]
        words = fence[1].split()
        if words[:1] == ["sql"]:
            read_example(page, words[1:], number + 1, end - 1, body)
        elif words[:1] == ["text"]:
            before = page.blocks[-1] if page.blocks else None
            if before is None or any(page.lines[before.last + 1:number - 1]):
                page.problems.append(f"{name}:{number}: this output follows no example")
            else:
                before.output = body
        number = end
    return page


def read_example(page: Page, words: list[str], first: int, last: int, body: list[str]) -> None:
    where = f"{page.name}:{first - 1}"
    role = body[0].removeprefix("-- as ") if body else ""
    if words[:1] == ["untested"]:
        if len(words) < 3:
            page.problems.append(f"{where}: an example that is not run needs a reason")
    elif words not in ([], ["fails"]):
        page.problems.append(f"{where}: an example is run, or fails, or is untested")
    elif role not in LOGINS:
        page.problems.append(f"{where}: the first line says who runs it: -- as {', '.join(LOGINS)}")
    else:
        page.blocks.append(Block(first, last, role, bool(words), "\n".join(body)))


def script(page: Page, port: int) -> str:
    lines = [""] * (len(page.lines) + 1)
    for block in page.blocks:
        lines[block.first - 2] = (f"\\connect - {LOGINS[block.role]} \\set ON_ERROR_STOP "
                                  f"{'off' if block.fails else 'on'} \\echo {MARK} {block.first}")
        lines[block.first - 1:block.last] = page.lines[block.first - 1:block.last]
        lines[block.last] = f"\\set ON_ERROR_STOP on \\echo {MARK} end"
    return "\n".join(lines).replace(DOUBLE, f"127.0.0.1:{port}") + "\n"


def masked(lines: list[str]) -> list[str]:
    """Without what differs from run to run, and without empty lines."""
    result = []
    for line in lines:
        for pattern, mask in MASKS:
            line = pattern.sub(mask, line)
        if line.strip():
            result.append(line.strip())
    return result


# --- Running pages ---------------------------------------------------------------

class Double:
    """The double of a provider, as long as the block it is used in."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = 0

    def __enter__(self) -> Double:
        token = "a-token-for-the-examples"
        ready = self.server.directory / "provider.port"
        ready.unlink(missing_ok=True)
        place = self.server.place
        self.program = Program(
            ["python3", "-B", place.source / "test/doubles/http_provider.py", "--port", "0", "--token", token,
             "--ready-file", ready], self.server.directory / "provider.log", place.environment(), place.source)
        give_up = time.monotonic() + 30
        while not (ready.exists() and ready.read_text().strip()):
            if time.monotonic() > give_up or self.program.process.poll() is not None:
                self.program.kill()
                raise RuntimeError("the double did not start: " + "\n".join(self.program.lines()))
            time.sleep(0.05)
        self.port = int(ready.read_text())
        file = self.server.directory / "tokens/boxes"
        file.write_text(f"for: http://127.0.0.1:{self.port}\n{token}\n")
        file.chmod(0o600)
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        list(self.program.lines())


def query(server: Server, database: str, text: str) -> list[dict]:
    """Rows, as objects."""
    answer = subprocess.run(
        [server.place.bin / "psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", server.sockets, "-U", "postgres",
         "-d", database, "-c", f"SELECT COALESCE(json_agg(q), '[]') FROM ({text}) AS q"],
        env=server.place.environment(), capture_output=True, text=True, check=True).stdout
    return json.loads(answer)


def make_database(server: Server, database: str, name: str) -> None:
    server.sql("postgres", f"CREATE DATABASE {database}")
    if name == INSTALLS:
        return
    server.sql(database, "CREATE EXTENSION leasehold")
    for role, group in ROLES.items():
        server.sql(database, f"CREATE ROLE {role} LOGIN IN ROLE {group}")
    give_up = time.monotonic() + 60
    while not query(server, database, "SELECT FROM leasehold_internal.worker_states() AS w WHERE w.state = 'running'"):
        if time.monotonic() > give_up:
            raise RuntimeError("no worker serves the database")
        time.sleep(0.05)


def drop_database(server: Server, database: str) -> None:
    server.sql("postgres", f"SET leasehold.allow_drop = on; DROP DATABASE IF EXISTS {database} WITH (FORCE)")
    for role in ROLES:
        server.sql("postgres", f"DROP ROLE IF EXISTS {role}")


def run_page(server: Server, page: Page, port: int) -> Outcome:
    begin = time.monotonic()
    outcome = Outcome(page.name, detail=list(page.problems))
    database = re.sub(r"\W", "_", page.name.lower())
    file = server.directory / page.name.replace("/", "_")
    file.write_text(script(page, port), encoding="utf-8")
    make_database(server, database, page.name)
    program = Program(
        [server.place.bin / "psql", "-X", "-q", "-P", "footer=off", "-v", "SHOW_CONTEXT=never",
         "-v", "ON_ERROR_STOP=1", "-h", server.sockets,
         "-U", "postgres", "-d", database, "-f", file],
        file.with_suffix(".log"), server.place.environment(PGAPPNAME="docs"), server.directory, limit=300)
    printed: dict[int, list[str]] = {}
    current = outcome.detail
    for line in program.lines():
        line = line.replace(f"127.0.0.1:{port}", DOUBLE)
        if line.startswith(MARK):
            number = line[len(MARK) + 1:]
            current = outcome.detail if number == "end" else printed.setdefault(int(number), [])
        else:
            current.append(line.replace(f"psql:{file}:", f"{page.name}:"))
    for block in page.blocks:
        if block.first in printed:
            judge(page, block, printed[block.first], outcome)
    if missing := [block.first for block in page.blocks if block.first not in printed]:
        outcome.failed += len(missing)
        outcome.detail.append(f"{page.name}:{missing[0]}: this example and what follows was not reached")
    if program.status:
        outcome.detail += [program.status, f"the end of {server.log}:", *server.last_lines()]
    drop_database(server, database)
    outcome.failed += bool(outcome.detail) and not outcome.failed
    outcome.passed += not page.blocks and not outcome.failed
    outcome.seconds = since(begin)
    return outcome


def judge(page: Page, block: Block, printed: list[str], outcome: Outcome) -> None:
    where = f"{page.name}:{block.first}"
    plain = [re.sub(rf"^{re.escape(page.name)}:\d+: ", "", line) for line in printed]
    failed = any(line.startswith(("ERROR: ", "FATAL: ")) for line in plain)
    if failed != block.fails:
        outcome.failed += 1
        outcome.detail += [f"{where}: {'fails' if failed else 'does not fail'}", *printed]
    elif block.output is not None and masked(plain) != masked(block.output):
        outcome.failed += 1
        outcome.detail += [f"{where}: the output is", *plain]
    elif block.fails and block.output is None:
        outcome.failed += 1
        outcome.detail += [f"{where}: fails, but the page does not say how", *plain]
    else:
        outcome.passed += 1


# --- What the pages say, and what the catalog says ---------------------------------

FUNCTIONS = """
SELECT p.proname AS name, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
       split_part(obj_description(p.oid, 'pg_proc'), ':', 1) AS kind,
       ARRAY(SELECT a.grantee::regrole::text FROM aclexplode(p.proacl) AS a
              WHERE a.grantee NOT IN (p.proowner, 'leasehold_worker'::regrole) ORDER BY 1) AS roles
  FROM pg_proc AS p WHERE p.pronamespace = 'leasehold'::regnamespace ORDER BY 1"""

SETTINGS = """
SELECT s.name, s.boot_val, COALESCE(s.unit, '') AS unit, s.context, s.short_desc AS what
  FROM pg_settings AS s WHERE s.name LIKE 'leasehold.%' ORDER BY 1"""

ENTRY = re.compile(r"^### (\w+)\n+```\n(.*?)\n```\n+(.*?)\n\n", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"^\| `(leasehold\.\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)
UNITS = {"ms": 1, "s": 1000, "min": 60000, "h": 3600000, "kB": 1, "MB": 1024, "": 1}
CONTEXTS = {"restart": "postmaster", "reload": "sighup", "superuser": "superuser"}


def squeezed(text: str) -> str:
    """A signature without line breaks and the casts that the catalog adds to defaults."""
    text = re.sub(r"::(?:[a-z_.]+(?: [a-z]+)*(?:\[\])?)", "", text)
    return re.sub(r"\s+", " ", text).replace("( ", "(").replace(" )", ")").strip()


def check_functions(functions: list[dict], pages: list[Page]) -> list[str]:
    text = "\n".join("\n".join([*page.lines, ""]) for page in pages)
    examples = "\n".join(block.text for page in pages for block in page.blocks)
    entries = {match[1]: match for match in ENTRY.finditer(text)}
    findings = []
    for function in functions:
        name = function["name"]
        if not re.search(rf"\bleasehold\.{name}\(", examples):
            findings.append(f"{name}: no example that is run calls it")
        if name not in entries:
            findings.append(f"{name}: no page has an entry for it")
            continue
        if function["kind"] == "procedure":
            wanted = squeezed(re.sub(r"\bIN ", "", f"CALL leasehold.{name}({function['arguments']})"))
        else:
            wanted = squeezed(f"leasehold.{name}({function['arguments']}) RETURNS {function['result']}")
        found = squeezed(entries[name][2])
        if found != wanted:
            findings += [f"{name}: its signature is", f"  {wanted}", f"  {found}"]
        who = entries[name][3].partition("\n")[0]
        if not who.startswith(function["kind"]):
            findings.append(f"{name}: is of the kind {function['kind']}")
        if sorted(set(re.findall(r"`(leasehold_\w+|pg_monitor)`", who))) != function["roles"]:
            findings.append(f"{name}: is for {', '.join(function['roles'])}")
    return findings + [f"{name}: there is no such function"
                       for name in entries if name not in {function["name"] for function in functions}]


def amount(text: str, unit: str) -> str:
    """A default as the page writes it, in the unit of the setting."""
    text = text.strip("`")
    if match := re.fullmatch(r"(\d+) ?(ms|s|min|h|kB|MB|)", text):
        return str(int(match[1]) * UNITS[match[2]] // UNITS[unit])
    return "" if text == "none" else text


def check_settings(settings: list[dict], pages: list[Page]) -> list[str]:
    rows = {match[1]: match for page in pages for match in SETTING.finditer("\n".join(page.lines))}
    findings = [f"{name}: there is no such setting" for name in rows.keys() - {s["name"] for s in settings}]
    for setting in settings:
        row = rows.get(setting["name"])
        if row is None:
            findings.append(f"{setting['name']}: is in no table")
        elif (amount(row[2], setting["unit"]), CONTEXTS.get(row[3]), row[4]) != (
                setting["boot_val"], setting["context"], setting["what"]):
            findings.append(f"{setting['name']}: is {setting['boot_val']} {setting['unit']}, {setting['context']}, "
                            f"{setting['what']}")
    return findings


def check_errors(codes: list[dict], pages: list[Page]) -> list[str]:
    """Codes that entries name are those that there are."""
    known = {row["code"] for row in codes}
    return [f"{page.name}:{number}: {code}: there is no such error"
            for page in pages for number, line in enumerate(page.lines, 1) if line.startswith("Errors: ")
            for code in re.findall(r"`(\w+)`", line) if code not in known]


def anchors(lines: list[str]) -> set[str]:
    """Where links into a page can lead: its headings, as they are rendered."""
    headings = [match[1] for line in lines if (match := re.match(r"#+ (.*)", line))]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links(place: Place, pages: list[Page]) -> list[str]:
    findings = []
    for page in pages:
        for number, line in enumerate(page.lines, 1):
            for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", line):
                file = (place.source / page.name).parent / target if target else place.source / page.name
                if not file.exists() or (
                        anchor and anchor not in anchors(file.read_text(encoding="utf-8").splitlines())):
                    findings.append(f"{page.name}:{number}: leads nowhere: {target}#{anchor}")
    return findings


def docs_jobs(place: Place, files: list[str]) -> list[Job]:
    def test() -> Iterator[Outcome]:
        pages = [read_page(place, name) for name in files]
        with Server(place, "docs") as server, Double(server) as double:
            for page in pages:
                yield run_page(server, page, double.port)
            if files == all_pages(place):
                make_database(server, "catalog", "catalog")
                for name, findings in (
                        ("functions", check_functions(query(server, "catalog", FUNCTIONS), pages)),
                        ("settings", check_settings(query(server, "catalog", SETTINGS), pages)),
                        ("errors", check_errors(query(server, "catalog", "SELECT * FROM leasehold.error_codes()"), pages)),
                        ("links", check_links(place, pages))):
                    yield Outcome(name, int(not findings), int(bool(findings)), detail=findings)
            yield from server.crashes()

    return [Job("docs", "run", test)]


def all_pages(place: Place) -> list[str]:
    return [file for pattern in PAGES for file in place.files(pattern)]


SUITE = Suite(all_pages, docs_jobs)
