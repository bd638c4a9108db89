# SPDX-License-Identifier: Apache-2.0
# Builds for aarch64 on another machine, and runs the tests in an emulator; with Debian's
# g++-aarch64-linux-gnu and qemu-user:
#
#   cmake -S . -B build/aarch64 --toolchain cmake/aarch64.cmake -DFIQA_FAST_CUDA=OFF
#   cmake --build build/aarch64 && ctest --test-dir build/aarch64
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
find_program(emulator NAMES qemu-aarch64 qemu-aarch64-static REQUIRED)
set(CMAKE_CROSSCOMPILING_EMULATOR ${emulator} -L /usr/aarch64-linux-gnu)
