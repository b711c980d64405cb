"""What was measured, as tables, Markdown, a chart and raw numbers."""

import datetime
import json
import os
import statistics
import sys

OURS = "longhaul"
GIB = 1 << 30


def about(bench, sides, left_out):
    """Where and with what it was measured."""
    with open("/proc/cpuinfo") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    with open("/proc/meminfo") as lines:
        memory = int(next(lines).split()[1])
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is not quiet: load {load:.1f}", file=sys.stderr)
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": "scripts/bench.sh " + " ".join(sys.argv[1:]),
        "cores": len(os.sched_getaffinity(0)), "cpu": model, "memory_gib": round(memory / (1 << 20), 1),
        "kernel": os.uname().release, "file_system": file_system(bench.base), "load": load,
        "rounds": bench.args.runs, "scale": bench.args.scale, "flush": bench.flush,
        "sides": {side.name: {"text": side.text, "version": side.version()} for side in sides},
        "left_out": left_out,
    }


def file_system(path):
    with open("/proc/self/mounts") as mounts:
        rows = [line.split() for line in mounts]
    path = os.path.realpath(path)
    inside = [row for row in rows if (path + "/").startswith(row[1].rstrip("/") + "/")]
    return max(inside, key=lambda row: len(row[1]))[2]


def merged(files):
    """Several earlier results as one; about what they were measured on speaks the last one."""
    result = {"about": {}, "sets": {}, "runs": []}
    for number, name in enumerate(files):
        with open(name) as file:
            one = json.load(file)
        sides = {**result["about"].get("sides", {}), **one["about"]["sides"]}
        result["about"] = {**one["about"], "sides": sides}
        result["sets"] |= one["sets"]
        # Rounds of different files are different rounds.
        result["runs"] += [{**run, "round": f"{number}.{run['round']}"} for run in one["runs"]]
    return result


def write(result, args):
    """Prints the tables, and writes what was asked for."""
    for table in tables(result):
        print("\n" + as_text(table))
    print("\n" + largest_agent(result))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)
    if args.markdown:
        with open(args.markdown, "w") as file:
            file.write(as_markdown(result))
    if args.png:
        chart(result, args.png)


def by_side(result, name):
    """side → round → run, of counted runs that did their work; and side → what failed."""
    good, bad = {}, {}
    for run in result["runs"]:
        if run["set"] == name:
            rounds = good.setdefault(run["side"], {})
            if "error" in run:
                bad.setdefault(run["side"], []).append(run["error"])
            elif run["counted"]:
                rounds[run["round"]] = run
    return good, bad


def ratios(theirs, ours, value):
    """value(their run) / value(our run) of the rounds that both did."""
    return [value(theirs[turn]) / value(ours[turn]) for turn in theirs if turn in ours and value(ours[turn]) > 0]


def seconds(run):
    return run["seconds"]


def cpu(run):
    return sum(run["cpu"].values())


def agents_cpu(run):
    return sum(used for role, used in run["cpu"].items() if "agent" in role)


def spread(values, digits=2):
    """median (min–max)"""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def peak(runs, roles):
    """MiB, of the largest process in all rounds."""
    most, bound = max((run["peak_kib"][role], role in run["bounds"]) for run in runs for role in roles)
    return f"{'≤ ' if bound else ''}{most / 1024:.0f}"


def tables(result):
    """One table per set: title, header, rows, notes."""
    for name, one in result["sets"].items():
        good, bad = by_side(result, name)
        ours = good.get(OURS, {})
        size = one["bytes"] / GIB
        rows = [row(side, rounds, ours, size) if rounds
                else [side, "failed" if side in bad else "-"] + ["-"] * (len(HEADER) - 2) for side, rounds in good.items()]
        notes = [f"{side} failed {len(errors)} times: {errors[0]}" for side, errors in bad.items()]
        notes += processes(ours, size) + against_yardstick(ours, good.get("yardstick"))
        title = f"{name}: {one['text']} ({amount(one)})"
        yield title, HEADER, sorted(rows, key=lambda row: (row[0] != OURS, row[2] == "-")), notes


HEADER = ["side", "median s", "min", "max", "its time / longhaul's", "CPU s", "CPU s/GiB", "its CPU / longhaul's", "peak MiB"]


def row(side, rounds, ours, size):
    """The cells of HEADER for a side that did its work in these rounds."""
    runs = list(rounds.values())
    times, used = [seconds(run) for run in runs], statistics.median(cpu(run) for run in runs)
    return [side, f"{statistics.median(times):.2f}", f"{min(times):.2f}", f"{max(times):.2f}",
            spread(ratios(rounds, ours, seconds)), f"{used:.2f}", per_gib(used, size),
            spread(ratios(rounds, ours, cpu)), peak(runs, runs[0]["peak_kib"])]


def per_gib(used, size):
    """Of little data it would say nothing."""
    return f"{used / size:.2f}" if size > 0.01 else "-"


def amount(one):
    return f"{one['files']:,} file{'s' * (one['files'] != 1)}, {one['bytes'] / (1 << 20):,.0f} MiB"


def processes(ours, size):
    """CPU and memory of each of Longhaul's processes."""
    runs = list(ours.values())
    if not runs:
        return []
    parts = [f"{role} {statistics.median(run['cpu'][role] for run in runs):.2f} s, "
             f"{peak(runs, [role])} MiB" for role in runs[0]["cpu"]]
    together = statistics.median(agents_cpu(run) for run in runs)
    return [f"longhaul's processes: {'; '.join(parts)}; agents together {together:.2f} s, {per_gib(together, size)} s per GiB"]


def against_yardstick(ours, yardstick):
    if not ours or not yardstick:
        return []
    used = [agents_cpu(ours[turn]) / cpu(yardstick[turn]) for turn in ours if turn in yardstick]
    return [f"longhaul / yardstick: time {spread(ratios(ours, yardstick, seconds))}, CPU of the agents {spread(used)}"]


def largest_agent(result):
    """What no agent went beyond, in all sets and rounds."""
    peaks = [peak for run in result["runs"] if run["side"] == OURS and "error" not in run
             for role, peak in run["peak_kib"].items() if "agent" in role]
    return f"Peak memory of an agent in all of these: {max(peaks) / 1024:.0f} MiB" if peaks else ""


def as_text(table):
    title, header, rows, notes = table
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [title]
    for row in [header, *rows]:
        lines.append("  " + "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                                      for i, (cell, width) in enumerate(zip(row, widths))))
    return "\n".join(lines + ["  " + note for note in notes])


def as_markdown(result):
    where = result["about"]
    lines = [f"`{where['command']}`", "",
             f"{where['cores']} cores ({where['cpu']}), {where['memory_gib']} GiB, Linux {where['kernel']}, "
             f"{where['file_system']}, {where['date'][:10]}; {where['rounds']} counted rounds in turn. Ratios are medians "
             "(least to most) pair by pair; CPU and memory of all processes that take part.", ""]
    for title, header, rows, notes in tables(result):
        lines += [f"**{title}**", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
        lines += [f"- {note}" for note in notes] + [""]
    lines += [largest_agent(result), ""]
    lines += [f"- {name}: {side['text']} ({side['version']})" for name, side in where["sides"].items()]
    lines += [f"- {name} left out: {reason}" for name, reason in where["left_out"].items()]
    return "\n".join(lines) + "\n"


def chart(result, path):
    """One panel per set, a bar per side: the median, with least and most."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("bench.sh: no chart without matplotlib: apt install python3-matplotlib, or pip install matplotlib",
              file=sys.stderr)
        return
    names = list(result["sets"])
    columns = min(3, len(names))
    figure, axes = pyplot.subplots(-(-len(names) // columns), columns, squeeze=False, layout="constrained",
                                   figsize=(4.6 * columns, 2.9 * -(-len(names) // columns)))
    for panel in axes.flat[len(names):]:
        panel.axis("off")
    for panel, name in zip(axes.flat, names):
        good, _ = by_side(result, name)
        times = {side: [seconds(run) for run in rounds.values()] for side, rounds in good.items() if rounds}
        sides = sorted(times, key=lambda side: -statistics.median(times[side]))
        middle = [statistics.median(times[side]) for side in sides]
        around = [[m - min(times[s]) for s, m in zip(sides, middle)], [max(times[s]) - m for s, m in zip(sides, middle)]]
        bars = panel.barh(sides, middle, xerr=around, color=["#1f6f8b" if s == OURS else "#b9c4c9" for s in sides],
                          error_kw={"elinewidth": 1, "ecolor": "#444"})
        panel.bar_label(bars, labels=[f" {m:.2f} s" for m in middle], padding=6, fontsize=8)
        panel.set_xlim(0, max((max(values) for values in times.values()), default=1) * 1.25)
        panel.set_title(f"{result['sets'][name]['text']}\n{amount(result['sets'][name])}", fontsize=9)
        panel.set_xlabel("seconds, less is better", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
