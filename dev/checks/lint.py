"""The checks of the sources.

Static analysers change their minds from version to version, so each runs only
in the version that this gate was written for; with another one it is skipped.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator

import indent
import upgrade_script
from jobs import Job, Outcome, Place, run, since
from suites import Suite

EXPORTED = re.compile(r"leasehold_\w+|pg_finfo_leasehold_\w+|Pg_magic_func|_PG_init")

Findings = list[str]


def commands(place: Place) -> dict[str, list[str]]:
    """How make compiles each file."""
    plan = subprocess.run(
        ["make", "-nB", "all", "with_llvm=no", f"PG_CONFIG={place.bin}/pg_config"],
        cwd=place.source, env=place.environment(), capture_output=True, text=True, check=True).stdout
    compiles = [shlex.split(line) for line in plan.splitlines() if " -c " in line]
    return {words[-1]: words for words in compiles}


def definitions(words: list[str]) -> list[str]:
    """What an analyser needs to know of a compiler's command."""
    return [word for word in words if word.startswith(("-I", "-D", "-std="))]


def analyse(place: Place, files: list[str], arguments: Callable[[str], list[str]],
            configuration: str = "") -> Findings:
    """Runs a program for each file, or for none that it liked as it is now."""
    shared = hashlib.sha256((place.source / configuration).read_bytes() if configuration else b"")
    for header in place.files("**/*.h"):
        shared.update((place.source / header).read_bytes())
    liked = place.work / "liked"
    liked.mkdir(exist_ok=True)
    findings = []
    for file in files:
        command = arguments(file)
        key = shared.copy()
        key.update("\0".join(command).encode())
        key.update((place.source / file).read_bytes())
        mark = liked / key.hexdigest()
        if mark.exists():
            continue
        lines, status = run(command, place.output / "lint" / f"{command[0]}-{file.replace('/', '-')}.log",
                            place.environment(), place.source)
        if status:
            findings += lines
        else:
            mark.touch()
    return findings


def warnings(place: Place, files: list[str]) -> Findings:
    compiles = commands(place)

    def command(file: str) -> list[str]:
        words = compiles[file]
        words[words.index("-o") + 1] = "/dev/null"
        return [*words, "-Werror"]

    return analyse(place, files, command)


def clang_tidy(place: Place, files: list[str]) -> Findings:
    compiles = commands(place)
    return [line for line in analyse(
        place, files,
        lambda file: ["clang-tidy", "--quiet", "--warnings-as-errors=*", file, "--", *definitions(compiles[file])],
        ".clang-tidy") if not re.match(r"\d+ warnings? (generated|treated)|Suppressed|Use -", line)]


def cppcheck(place: Place, files: list[str]) -> Findings:
    compiles = commands(place)
    return analyse(
        place, files,
        lambda file: ["cppcheck", "--quiet", "--error-exitcode=1", "--std=c11", "--inline-suppr",
                      "--enable=warning,style,performance,portability", "--suppressions-list=dev/cppcheck.txt",
                      # a machine that PostgreSQL's headers know, without the checks of types that puzzle it
                      "-D__x86_64__", "-D__GNUC__=12", "-UHAVE__BUILTIN_TYPES_COMPATIBLE_P",
                      *[word for word in definitions(compiles[file]) if not word.startswith("-std")], file],
        "dev/cppcheck.txt")


def layout(place: Place, files: list[str]) -> Findings:
    sources = [place.source / file for file in files]
    types = indent.types_of(place.source / "leasehold.so", sources)
    findings = []
    for file, source in zip(files, sources):
        text = source.read_text()
        if indent.indented(text, types) != text:
            findings.append(f"{file}: is not formatted; `make format` does it")
    return findings


def symbols(place: Place, _: list[str]) -> Findings:
    table = subprocess.run(["nm", "-D", "--defined-only", place.source / "leasehold.so"],
                           capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in table.splitlines()]
    return [f"{name}: is exported" for name in names if not EXPORTED.fullmatch(name)]


def shellcheck(place: Place, files: list[str]) -> Findings:
    return analyse(place, files, lambda file: ["shellcheck", file], ".shellcheckrc")


def released(place: Place, files: list[str]) -> Findings:
    """What was released is not changed any more; what is to be released next gets a new number first."""
    directory = place.source / "extension/released"
    sums = {name: digest for digest, name in
            (line.split() for line in (directory / "SHA256SUMS").read_text().splitlines())}
    findings = [f"extension/released/{name}: is in SHA256SUMS, but not there" for name in sums
                if not (directory / name).exists()]
    for file in files:
        name = pathlib.Path(file).name
        text = (place.source / file).read_bytes()
        if sums.get(name) != hashlib.sha256(text).hexdigest():
            findings.append(f"{file}: was released, but is not what SHA256SUMS says")
        if name == f"leasehold--{upgrade_script.version(place.source)}.sql":
            api = b"".join((place.source / part).read_bytes() for part in sorted(place.files("extension/api/*.sql")))
            if text != api:
                findings.append(f"extension/api: differs from {file}; raise EXTVERSION in Makefile and default_version in "
                                "extension/leasehold.control, and write the upgrade script")
    return findings


def upgrade_is_current(place: Place, files: list[str]) -> Findings:
    """It is what `make upgrade-script` makes of extension/api/."""
    made = upgrade_script.upgrade(place.source)
    if made is None or made[0].exists() and made[0].read_text() == made[1]:
        return []
    return [f"{made[0].relative_to(place.source)}: is out of date; run `make upgrade-script`"]


C_FILES = ("extension/**/*.c", "worker/**/*.c")
HEADERS = ("extension/**/*.h", "worker/**/*.h")
SHELL_FILES = ("dev/*.sh", ".ci/run")

# name, files, what it does, how to ask for its version, the version wanted
CHECKS = [
    ("released SQL", ("extension/released/*.sql",), released, None, ""),
    ("upgrade script", ("Makefile",), upgrade_is_current, None, ""),
    ("exported symbols", ("leasehold.so",), symbols, None, ""),
    ("format", C_FILES + HEADERS, layout, ["pg_bsd_indent", "--version"], indent.VERSION),
    ("shellcheck", SHELL_FILES, shellcheck, ["shellcheck", "--version"], "0.9"),
    ("compiler warnings", C_FILES, warnings, None, ""),
    ("cppcheck", C_FILES, cppcheck, ["cppcheck", "--version"], "2.10"),
    ("clang-tidy extension", C_FILES[:1], clang_tidy, ["clang-tidy", "--version"], "14.0"),
    ("clang-tidy worker", C_FILES[1:], clang_tidy, ["clang-tidy", "--version"], "14.0"),
]


def lint_jobs(place: Place, _: list[str]) -> list[Job]:
    def check(name: str, patterns: tuple[str, ...], find: Callable[[Place, list[str]], Findings],
              ask: list[str] | None, wanted: str) -> Iterator[Outcome]:
        begin = time.monotonic()
        if ask:
            answer = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
            if not re.search(rf"\b{re.escape(wanted)}\b", answer):
                found = re.search(r"\d+(\.\d+)+", answer)
                yield Outcome(name, skipped=1, detail=[
                    f"{ask[0]} is of version {found[0] if found else 'unknown'}, this needs {wanted}"])
                return
        findings = find(place, [file for pattern in patterns for file in place.files(pattern)])
        yield Outcome(name, int(not findings), int(bool(findings)), 0, since(begin), findings)

    return [Job("lint", entry[0], lambda entry=entry: check(*entry)) for entry in CHECKS]


SUITE = Suite(lambda place: ["lint"], lint_jobs)
