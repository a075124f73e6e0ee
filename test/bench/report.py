"""The report: a Markdown table, and its place in docs/performance.md."""

import datetime
import os
import platform
import re
import subprocess

BEGIN = "<!-- figures: made by `make bench RECORD=1` -->"
END = "<!-- end of figures -->"


def number(value):
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def cell(values, unit=""):
    values = sorted(values)
    text = number(values[len(values) // 2]) if len(values) % 2 else number((values[len(values) // 2 - 1] + values[len(values) // 2]) / 2)
    if len(values) > 1:
        text += f" ({number(values[0])} – {number(values[-1])})"
    return f"{text} {unit}".strip()


def machine(lab):
    """What the figures depend on."""
    def version(*command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return re.search(r"\d+(\.\d+)+", done.stdout).group(0)
    with open("/proc/cpuinfo", encoding="ascii") as f:
        model = re.search(r"model name\s*:\s*(.*)", f.read())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [f"{os.cpu_count()} processors ({model.group(1) if model else platform.machine()}), {memory:.0f} GB of memory, "
            f"Linux {platform.release().split('-')[0]}",
            f"PostgreSQL {version(lab.pg('postgres'), '--version')}, libcurl {version('curl-config', '--version')}, "
            f"nginx {version('nginx', '-v')}"]


def markdown(rows, lab, scale_name, seconds):
    lines = [f"Measured {datetime.date.today().isoformat()}, {scale_name}, in {seconds / 60:.0f} minutes.", ""]
    lines += [f"- {text}" for text in machine(lab)]
    lines += ["", "| what | figure: median (lowest – highest) | yardstick in the same run | ratio | bar |",
              "|---|---|---|---|---|"]
    for row in rows:
        yard = f"{cell(row.yard)} {row.yardstick}" if row.yard else ""
        ratio = f"{row.ratio:.0%}" if row.yard else ""
        bars = ", ".join(f"{text}: {'met' if met else '**missed**'}" for text, met in row.bars)
        lines.append(f"| {row.what} | {cell(row.values, row.unit)} | {yard} | {ratio} | {bars} |")
    notes = [row for row in rows if row.note]
    if notes:
        lines += ["", "Beside:", ""] + [f"- {row.what}: {row.note}" for row in notes]
    return "\n".join(lines) + "\n"


def record(path, text):
    """Puts the text between the markers of a page."""
    with open(path, encoding="utf8") as f:
        page = f.read()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    with open(path, "w", encoding="utf8") as f:
        f.write(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
