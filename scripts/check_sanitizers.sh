#!/bin/sh
# The tests of the C core with AddressSanitizer and UndefinedBehaviorSanitizer (gcc, Linux).
#
#     scripts/check_sanitizers.sh [pytest arguments]
#
# Builds the core in a scratch folder with the sanitizers, beside a copy of the Python files, and
# runs the tests of the core and of packed checkpoints on that; the working tree and what is
# installed are not touched.
# Wants cmake 3.26 (`pip install cmake` has it). PYTHON names the interpreter, of an environment in
# which `pip install -e '.[dev]'` was done.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

sanitizers="-fsanitize=address,undefined,float-cast-overflow,float-divide-by-zero"
cmake -S "$root/dynquant/quants/csrc" -B "$scratch/build" -DCMAKE_BUILD_TYPE=None \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
    -DCMAKE_C_COMPILER="${CC:-gcc}" -DDYNQUANT_OPTIMIZE=-O1 \
    -DCMAKE_C_FLAGS="-g -fno-omit-frame-pointer -fno-sanitize-recover=all $sanitizers" >"$scratch/log"
cmake --build "$scratch/build" -j 2 >>"$scratch/log" || { cat "$scratch/log" >&2; exit 1; }

mkdir "$scratch/tree"
cp -r "$root/dynquant" "$root/recipes" "$root/tests" "$root/pyproject.toml" "$scratch/tree"
find "$scratch/tree/dynquant" -name '_core*.so' -delete
cp "$scratch"/build/_core*.so "$scratch/tree/dynquant/quants/"

# Python's own allocator would hide what lies beyond a buffer, and it leaks by design. The finder of
# an editable install would come before the copy. -s: a report is the last thing on stderr.
cd "$scratch/tree"
LD_PRELOAD="$("${CC:-gcc}" -print-file-name=libasan.so)" PYTHONMALLOC=malloc \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$scratch/tree" \
    "$python" -c 'import sys, pytest
sys.meta_path = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
import dynquant.quants._core as core
assert core.__file__.startswith(sys.argv[1]), core.__file__
sys.exit(pytest.main(sys.argv[2:]))' "$scratch/tree" -p no:cacheprovider -n 0 -s tests/test_quants.py tests/test_quants_edges.py \
    tests/test_stored.py tests/test_packed.py tests/test_error_sums.py tests/quants "$@"
