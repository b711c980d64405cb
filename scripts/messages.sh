#!/usr/bin/env bash
# Prints every message of the program, one a line with its place: errors, hints, reasons, help, log lines at INFO and
# above. For reading them all in one go: scripts/messages.sh | less
set -euo pipefail
cd "$(dirname "$0")/.."
python3 - <<'EOF'
import pathlib, re

TOKEN = re.compile(
    r'(?P<line>//[^\n]*)|(?P<block>/\*.*?\*/)|b?r(?P<hash>#*)"(?P<raw>.*?)"(?P=hash)'
    r'|b?"(?P<text>(?:[^"\\]|\\.)*)"|(?P<char>b?\'(?:[^\'\\\n]|\\.[^\'\n]*)\')', re.S)
QUIET = re.compile(r'\b(?:debug|trace|debug_span|info_span|trace_span|span|assert\w*|panic|unreachable|expect)!?\s*\($')
HELP = ("src/cli/args.rs", "src/cli/options.rs")

def without_tests(source):
    """Blanks the modules of tests, which a file of this project has at its end."""
    begin = source.find("#[cfg(test)]\nmod ")
    if begin < 0:
        return source
    end = source.find("\n}\n", begin)
    inline = "{" in source[begin:source.find("\n", begin + 14)]
    if not inline or end < 0:
        return source
    body = source[begin:end]
    return source[:begin] + re.sub(r"[^\n]", " ", body) + source[end:]

def is_quiet(before):
    """Whether a literal stands in a macro with a text that operators do not see."""
    depth, at = 0, len(before)
    while at > 0 and len(before) - at < 400:
        at -= 1
        depth += (before[at] == ")") - (before[at] == "(")
        if depth < 0:
            if QUIET.search(before[:at + 1]):
                return True
            depth = 0
    return False

for path in sorted(pathlib.Path("src").rglob("*.rs")):
    name = str(path)
    if "/tests" in name or path.name in ("testing.rs", "tests.rs", "sample.rs", "mutate.rs", "contract.rs"):
        continue
    source = without_tests(path.read_text())
    code, shown = "", []
    for token in TOKEN.finditer(source):
        line = source.count("\n", 0, token.start()) + 1
        if token["line"] is not None:
            if name in HELP and token["line"].startswith("/// "):
                shown.append([line, line, token["line"][4:]])
            continue
        text = token["raw"] if token["raw"] is not None else token["text"]
        if text is None:
            continue
        text = re.sub(r"\\\n\s*", "", text)
        words = re.findall(r"[a-z][a-z']+", text)
        before = re.sub(r"//[^\n]*", "", source[max(0, token.start() - 600):token.start()])
        attribute = re.search(r"#!?\[(?:expect|allow|cfg|serde|doc)[^\]]*$", before)
        if len(words) >= 2 and " " in text and not attribute and not is_quiet(before):
            shown.append([line, 0, text.replace("\n", "\\n")])
    joined = []
    for first, last, text in shown:
        if last and joined and joined[-1][1] == last - 1:
            joined[-1][1:] = [last, joined[-1][2] + " " + text]
        else:
            joined.append([first, last, text])
    for first, _, text in joined:
        print(f"{name}:{first}: {text}")
EOF
