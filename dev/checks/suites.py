"""The suites that run the product, or parts of it."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jobs import Job, Outcome, Place, Program, run, since

PGXS_TEST = pathlib.Path("/usr/lib/postgresql/15/lib/pgxs/src/test")
CRASH = re.compile(r"terminated by signal (4|6|7|8|11)\b|PANIC: |TRAP: |AddressSanitizer|runtime error:")


@dataclass
class Suite:
    """How to find the files of a suite, and the jobs that test some of them."""

    files: Callable[[Place], list[str]]
    jobs: Callable[[Place, list[str]], list[Job]]


# --- Programs that print TAP, through prove -----------------------------------

def prove(place: Place, name: str, arguments: list[str], environment: dict[str, str],
          prover: str = "prove") -> Outcome:
    """One program; prove judges, the lines are counted."""
    begin = time.monotonic()
    outcome = Outcome(name)
    log = place.output / (name.replace("/", "_") + ".log")
    program = Program([prover, "--norc", "--merge", "--verbose", *arguments], log, environment, place.source,
                      kept=True)
    lines = list(program.lines())
    blame = False
    for line in lines:
        todo = re.search(r"# todo\b", line, re.IGNORECASE)
        if re.match(r"ok \d+", line):
            if re.search(r"# skip\b", line, re.IGNORECASE):
                outcome.skipped += 1
            else:
                outcome.passed += 1
        elif re.match(r"not ok \d+", line):
            outcome.failed += not todo
            outcome.passed += bool(todo)
        elif match := re.match(r"(?:1\.\.0 # skip|\S+ \.+ skipped:)\s*(.*)", line, re.IGNORECASE):
            outcome.skipped += 1
            outcome.detail.append(match[1])
        # failures, those within subtests included, with what is said of them
        if re.match(r"\s*(not )?ok\b", line):
            blame = "not ok" in line and not todo
        if blame and re.match(r"\s*(not ok|#)", line):
            outcome.detail.append(line)
    if program.status and not outcome.failed:
        outcome.failed += 1
    if program.status:
        outcome.detail += [f"{program.status}; the end of {log}:", *lines[-25:]]
    outcome.seconds = since(begin)
    return outcome


def tap_jobs(place: Place, files: list[str]) -> list[Job]:
    def test(file: str) -> Iterator[Outcome]:
        directory = place.output / "tap" / pathlib.Path(file).stem
        (directory / "tmp_check").mkdir(parents=True)
        environment = place.environment(
            PERL5LIB=f"{PGXS_TEST}/perl", PG_REGRESS=f"{PGXS_TEST}/regress/pg_regress",
            PG_TEST_PORT_DIR=str(place.output / "ports"),
            TESTDIR=str(directory), TESTDATADIR=str(directory / "tmp_check"),
            TESTLOGDIR=str(directory / "tmp_check/log"))
        outcome = prove(place, file, [file], environment)
        outcome.detail += crashes((directory / "tmp_check/log").glob("*.log"), outcome)
        if outcome.failed:
            outcome.detail.append(f"see also {directory}/tmp_check/log")
        yield outcome

    return [Job("tap", file, lambda file=file: test(file)) for file in files]


def crashes(logs: Iterator[pathlib.Path], outcome: Outcome) -> list[str]:
    """Lines of server logs that no test, however harsh, should have provoked."""
    found = [f"{log}: {line}" for log in sorted(logs)
             for line in log.read_text(errors="replace").splitlines() if CRASH.search(line)]
    outcome.failed += bool(found)
    return found


def unit_jobs(place: Place, files: list[str]) -> list[Job]:
    """Each file is a program that includes what it tests and prints TAP."""
    def test(file: str) -> Iterator[Outcome]:
        program = place.output / "unit" / pathlib.Path(file).stem
        program.parent.mkdir(exist_ok=True)
        problems, status = run(
            ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE",
             "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Iextension", "-Iworker",
             "-o", program, file, "-lcurl", "-ljansson"],
            program.with_suffix(".build.log"), place.environment(), place.source)
        if status:
            yield Outcome(file, failed=1, detail=problems)
        else:
            yield prove(place, file, ["--exec", "", str(program)], place.environment())

    return [Job("unit", file, lambda file=file: test(file)) for file in files]


# --- The stand-ins for providers -------------------------------------------------

DOUBLES = "test/doubles"
SELFTEST = f"{DOUBLES}/selftest.py"
AGAINST_SDK = f"{DOUBLES}/check_against_sdk.mjs"


def doubles_jobs(place: Place, files: list[str]) -> list[Job]:
    tests = {SELFTEST: selftest, AGAINST_SDK: against_sdk}
    return [Job("doubles", file, lambda file=file: tests[file](place)) for file in files]


def selftest(place: Place) -> Iterator[Outcome]:
    begin = time.monotonic()
    lines, status = run(["python3", SELFTEST], place.output / "selftest.log",
                        place.environment(), place.source, kept=True)
    text = "\n".join(lines[-5:])
    counts = {what: int(count) for what, count in re.findall(r"(failures|errors|skipped)=(\d+)", text)}
    tests = re.search(r"^Ran (\d+) tests?", text, re.MULTILINE)
    failed = counts.get("failures", 0) + counts.get("errors", 0) or int(status is not None)
    skipped = counts.get("skipped", 0)
    yield Outcome(SELFTEST, int(tests[1]) - failed - skipped if tests else 0, failed, skipped,
                  since(begin), lines if failed else [])


def against_sdk(place: Place) -> Iterator[Outcome]:
    """Needs Node and a package registry, which not every machine has."""
    directory = place.source / DOUBLES
    wanted = json.loads((directory / "package.json").read_text())["devDependencies"]
    problem = None
    if not shutil.which("node") or not shutil.which("npm"):
        problem = "node and npm are not installed"
    elif int(subprocess.run(["node", "-p", "process.versions.node.split('.')[0]"],
                            capture_output=True, text=True, check=True).stdout) < 20:
        problem = "node is older than version 20"
    elif any(installed_version(directory, name) != version for name, version in wanted.items()):
        _, status = run(["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0"],
                        place.output / "npm.log", place.environment(), directory, limit=120)
        if status:
            problem = "npm could not install the plugin SDK"
    if problem:
        yield Outcome(AGAINST_SDK, skipped=1, detail=[problem])
    else:
        yield prove(place, AGAINST_SDK, ["--exec", "node", AGAINST_SDK], place.environment())


def installed_version(directory: pathlib.Path, package: str) -> str | None:
    try:
        return json.loads((directory / "node_modules" / package / "package.json").read_text())["version"]
    except OSError:
        return None


# --- Kills in the middle of everything -------------------------------------------

CHAOS = "test/chaos/chaos.py"
CHAOS_COMMANDS = "test/chaos/commands.py"


def chaos_jobs(place: Place, files: list[str]) -> list[Job]:
    """Debian's own Python: the driver for PostgreSQL is a package of Debian's."""
    def test(script: str, name: str, *arguments: str) -> Iterator[Outcome]:
        directory = place.output / "chaos"
        directory.mkdir(exist_ok=True)
        yield prove(place, f"{script} {name}",
                    ["--exec", "/usr/bin/python3", script, "::", *arguments,
                     "--directory", str(directory), "--bin", str(place.bin)], place.environment())

    jobs = []
    if CHAOS in files:
        jobs += [Job("chaos", variant, lambda variant=variant: test(CHAOS, variant, "--variant", variant))
                 for variant in ("lookup", "async", "plain")]
    if CHAOS_COMMANDS in files:
        jobs.append(Job("chaos", "commands", lambda: test(CHAOS_COMMANDS, "commands")))
    return jobs


# --- A worker that lasts ---------------------------------------------------------

SOAK = "test/soak/soak.py"


def soak_jobs(place: Place, files: list[str]) -> list[Job]:
    """The short form: it finds what grows fast.  A sanitizer keeps memory that was given back."""
    def test(file: str) -> Iterator[Outcome]:
        directory = place.output / "soak"
        directory.mkdir(exist_ok=True)
        yield prove(place, file,
                    ["--exec", "/usr/bin/python3", file, "::", "--seconds", "30",
                     "--memory-bound", "1024" if place.sanitized else "64", "--descriptor-bound", "16",
                     "--directory", str(directory), "--bin", str(place.bin)], place.environment())

    return [Job("soak", file, lambda file=file: test(file)) for file in files]


# --- pg_regress and pg_isolation_regress ---------------------------------------

TEST_LINE = re.compile(r"(?:test)?\s+(\S+)\s+\.\.\. (ok|FAILED|failed \(ignored\))\s*(.*?)\s*(?:(\d+) ms)?$")


def pg_regress(place: Place, suite: str, program: str, inputs: str, options: list[str],
               schedule: list[list[str]]) -> Iterator[Outcome]:
    """Runs it with a server of its own."""
    with Server(place, suite) as server:
        output = server.directory
        (output / "schedule").write_text("".join(f"test: {' '.join(line)}\n" for line in schedule))
        running = Program(
            [PGXS_TEST / program, f"--bindir={place.bin}", f"--inputdir={place.source / inputs}",
             f"--outputdir={output}", f"--host={server.sockets}", "--port=5432", "--user=postgres",
             f"--dbname={suite}", f"--schedule={output}/schedule", *options],
            output / "output.log", place.environment(), output, kept=True)
        lines = []
        count = 0
        for line in running.lines():
            lines.append(line)
            if match := TEST_LINE.match(line):
                count += 1
                outcome = Outcome(match[1], seconds=int(match[4] or 0) / 1000)
                if match[2] == "FAILED":
                    outcome.failed = 1
                    outcome.detail = [match[3]] * bool(match[3]) + difference(output / "regression.diffs", match[1])
                else:
                    outcome.passed = 1
                yield outcome
        if count == 0 or (running.status and running.status != "exit code 1"):
            yield Outcome("run", failed=1, detail=[
                running.status or "ran nothing", *lines[-15:], f"the end of {server.log}:", *server.last_lines()])
    yield from server.crashes()


def difference(diffs: pathlib.Path, test: str) -> list[str]:
    """What regression.diffs says of one test."""
    if not diffs.exists():
        return []
    parts = re.split(r"^(?=diff )", diffs.read_text(errors="replace"), flags=re.MULTILINE)
    shown = [part for part in parts if f"/{test}.out" in part.partition("\n")[0]]
    return "".join(shown).splitlines() + [f"all differences: {diffs}"]


def regress_family(suite: str, program: str, inputs: str, scripts: str, extra: list[str]) -> Suite:
    """A suite of pg_regress or its sibling, in the order of the file `schedule`
    beside the scripts.  Its first line prepares the database for all others."""
    def scheduled(place: Place) -> list[list[str]]:
        schedule = place.source / scripts.rpartition("/")[0] / "schedule"
        text = schedule.read_text() if schedule.exists() else ""
        return [line.split() for line in re.findall(r"^test:(.*)", text, re.MULTILINE)]

    def test(place: Place, names: list[str], lines: list[list[str]]) -> Iterator[Outcome]:
        everything = [pathlib.Path(file).stem for file in place.files(scripts)]
        if not lines:
            yield from pg_regress(place, suite, program, inputs, extra, [[name] for name in names])
            return
        if names != everything:
            lines = [lines[0]] + [[name] for line in lines[1:] for name in line if name in names]
        else:
            for name in sorted(set(everything).difference(*lines)):
                yield Outcome(name, failed=1, detail=["is not in the schedule"])
        yield from pg_regress(place, suite, program, inputs, extra, lines)

    def jobs(place: Place, files: list[str]) -> list[Job]:
        names = [pathlib.Path(file).stem for file in files]
        return [Job(suite, "run", lambda: test(place, names, scheduled(place)))]

    return Suite(lambda place: place.files(scripts), jobs)


# --- SQL files that print TAP ----------------------------------------------------

def sql_suite(suite: str, scripts: str, extension: str) -> Suite:
    """Each file in a database of its own, one server for all."""
    def test(place: Place, files: list[str]) -> Iterator[Outcome]:
        with Server(place, suite) as server:
            for number, file in enumerate(files):
                database = f"test_{number}"
                server.sql("postgres", f"CREATE DATABASE {database}")
                server.sql(database, f"CREATE EXTENSION {extension}; CREATE EXTENSION leasehold")
                yield prove(place, file, ["-b", f"{place.bin}/psql", "-h", server.sockets, "-U", "postgres",
                                          "-d", database, file], place.environment(), "pg_prove")
                server.sql("postgres", f"SET leasehold.allow_drop = on; DROP DATABASE {database} WITH (FORCE)")
        yield from server.crashes()

    return Suite(lambda place: place.files(scripts),
                 lambda place, files: [Job(suite, "run", lambda: test(place, files))])


class Server:
    """A server that lives as long as the block it is used in."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.directory = place.output / name
        self.log = self.directory / "server.log"
        self.sockets = tempfile.mkdtemp(prefix="leasehold-")  # a socket's path must be short

    def __enter__(self) -> Server:
        (self.directory / "tokens").mkdir(parents=True, mode=0o700)
        data = self.directory / "data"
        self.must([self.place.bin / "initdb", "-D", data, "-U", "postgres", "-A", "trust",
                   "-E", "UTF8", "--no-locale", "--no-sync"])
        with open(data / "postgresql.conf", "a", encoding="utf-8") as settings:
            settings.write((self.place.source / "test/server.conf").read_text())
            settings.write("listen_addresses = ''\n"
                           f"unix_socket_directories = '{self.sockets}'\n"
                           f"leasehold.token_directory = '{self.directory}/tokens'\n")
        self.must([self.place.bin / "pg_ctl", "-D", data, "-l", self.log, "-s", "-w", "start"])
        return self

    def __exit__(self, *_: object) -> None:
        run([self.place.bin / "pg_ctl", "-D", self.directory / "data", "-m", "fast", "-s", "stop"],
            self.directory / "stop.log", self.place.environment(), self.directory)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def last_lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()[-15:]

    def crashes(self) -> Iterator[Outcome]:
        """None, if all is well."""
        outcome = Outcome("server log")
        outcome.detail = crashes(iter([self.log]), outcome)
        if outcome.failed:
            yield outcome

    def must(self, command: list[str | pathlib.Path]) -> None:
        lines, status = run(command, self.directory / "command.log", self.place.environment(), self.directory)
        if status:
            raise RuntimeError("\n".join([" ".join(map(str, command)), status, *lines]))

    def sql(self, database: str, text: str) -> None:
        commands = [word for part in text.split("; ") for word in ("-c", part)]
        self.must([self.place.bin / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", self.sockets,
                   "-U", "postgres", "-d", database, *commands])


ALL = {
    "unit": Suite(lambda place: place.files("test/unit/*.c"), unit_jobs),
    "doubles": Suite(lambda place: [f for f in (SELFTEST, AGAINST_SDK) if (place.source / f).exists()], doubles_jobs),
    "regress": regress_family("regress", "regress/pg_regress", ".", "sql/*.sql", []),
    "isolation": regress_family("isolation", "isolation/pg_isolation_regress", "test/isolation",
                                "test/isolation/specs/*.spec", ["--load-extension=leasehold"]),
    "pgtap": sql_suite("pgtap", "test/pgtap/*.sql", "pgtap"),
    "tap": Suite(lambda place: place.files("test/t/*.pl"), tap_jobs),
    "chaos": Suite(lambda place: place.files(CHAOS) + place.files(CHAOS_COMMANDS), chaos_jobs),
    "soak": Suite(lambda place: place.files(SOAK), soak_jobs),
}
