#!/usr/bin/env bash
# Mutation testing of one module: applies a random sample of small faults to its source, one at a time, and runs
# the module's tests against each. A fault that no test finds is a survivor: it needs a test, or a line in
# scripts/mutants-equal.txt that says why the changed program behaves the same. By hand: a module takes an hour or more.
#
#   scripts/mutants.sh MODULE [--sample N] [--seed N] [--list] [--keep DIR]
#
#   MODULE        scheduler, fs, data, agent, store, or any other directory of src
#   --sample N    so many mutants                          [default: 60]
#   --seed N      chooses the sample; the same seed on the same source gives the same mutants [default: the time]
#   --list        print the sample and end
#   --keep DIR    leave the reports of cargo-mutants there (diff and log of each mutant)
#
# The tests of a module are the unit tests below its path; those of `scheduler` include the simulation and the
# random histories. Needs cargo-mutants: cargo install cargo-mutants --locked
# Exit code: 0 when at most a tenth of the sample survives, 1 when more do, 2 for wrong use.
set -euo pipefail

usage() { sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p'; exit 2; }
cd "$(dirname "$0")/.."
module=${1:-}
case "$module" in "" | -*) usage ;; esac
shift
sample=60 seed=$(date +%s) list="" keep=""
while [ $# -gt 0 ]; do
  case "$1" in
    --sample) sample=$2; shift 2 ;;
    --seed) seed=$2; shift 2 ;;
    --list) list=1; shift ;;
    --keep) keep=$2; shift 2 ;;
    *) usage ;;
  esac
done
[ -d "src/$module" ] || { echo "mutants.sh: src/$module is not a directory" >&2; exit 2; }
cargo mutants --version >/dev/null 2>&1 || {
  echo "mutants.sh: cargo-mutants is needed; run: cargo install cargo-mutants --locked" >&2
  exit 2
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Tests are no program: a change of a test proves nothing.
files=(--file "src/$module/**/*.rs" --exclude '**/tests/**' --exclude '**/tests.rs' --exclude '**/testing.rs')
cargo mutants --list --no-config --line-col=true "${files[@]}" >"$work/all"
equal=scripts/mutants-equal.txt
# The place of a mutant moves with every edit; file and change name it in the list of equal ones.
unplaced() { sed 's/^\([^:]*\):[0-9]*:[0-9]*:/\1:/'; }
shuffled() { shuf -n "$sample" --random-source=<(openssl enc -aes-256-ctr -nosalt -pass "pass:$seed" </dev/zero 2>/dev/null); }
shuffled <"$work/all" >"$work/sample"
[ -z "$list" ] || { cat "$work/sample"; exit 0; }

chosen=()
while IFS= read -r line; do
  chosen+=(--re "^$(sed 's/[][\.*^$+?(){}|/]/\\&/g' <<<"$line")\$")
done <"$work/sample"
out=${keep:-$work/out}
mkdir -p "$out"
echo "$(wc -l <"$work/sample") of $(wc -l <"$work/all") mutants of src/$module, seed $seed"
code=0
# A cap turns the lints off that a mutated body would break; a mutant is judged by tests only.
cargo mutants --no-config --line-col=true --cap-lints=true --no-shuffle --minimum-test-timeout 120 --colors never \
  --output "$out" "${files[@]}" "${chosen[@]}" -- --lib "$module::" || code=$?
# 2: some were missed; 3: some ran into the time limit, which counts as found. Anything else is no result.
case "$code" in 0 | 2 | 3) ;; *) echo "mutants.sh: cargo-mutants failed ($code)" >&2; exit 1 ;; esac

found=$(cat "$out"/mutants.out/{caught,timeout}.txt | wc -l)
touch "$equal"
unplaced <"$out/mutants.out/missed.txt" | sort >"$work/missed"
sed 's/ # .*//; /^#/d; /^$/d' "$equal" | sort >"$work/equal"
comm -23 "$work/missed" "$work/equal" >"$work/survivors"
same=$(comm -12 "$work/missed" "$work/equal" | wc -l)
survived=$(wc -l <"$work/survivors")
judged=$((found + survived))
echo
echo "src/$module, seed $seed: $found found, $survived survive, $same are equal, \
$(wc -l <"$out/mutants.out/unviable.txt") do not build"
[ "$survived" = 0 ] || { echo "survivors:"; sed 's/^/  /' "$work/survivors"; }
((survived * 10 <= judged))
