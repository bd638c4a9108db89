// SPDX-License-Identifier: Apache-2.0
// Runs calls from a file, for sanitizers and for kernels that may crash: a process of its own needs
// no preloaded library and takes nobody down. emulation/process.py writes the file and reads the
// answer; all numbers are little-endian.
#include <stdio.h>
#include <stdlib.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>

#include "harness/call.h"
#include "runtime/options.h"

namespace fiqa_fast::test {
namespace {

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {
    file_.exceptions(std::ios::failbit | std::ios::badbit);
  }
  template <class T>
  T read() {
    T value;
    file_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::string text() {
    std::string value(static_cast<size_t>(read<int64_t>()), '\0');
    file_.read(value.data(), static_cast<std::streamsize>(value.size()));
    return value;
  }

 private:
  std::ifstream file_;
};

// The bytes that an array spans, in an allocation of exactly this size and with the alignment that
// they had, so that AddressSanitizer sees every access beside them.
struct Storage {
  std::string name;
  std::unique_ptr<void, decltype(&free)> memory{nullptr, free};
  unsigned char* begin = nullptr;
  size_t bytes = 0;
};

constexpr size_t kAlignment = 16;

Storage read_storage(Reader& in) {
  Storage storage;
  storage.name = in.text();
  const size_t misalignment = static_cast<size_t>(in.read<int64_t>());
  const std::string bytes = in.text();
  storage.bytes = bytes.size();
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, misalignment + storage.bytes)) throw std::bad_alloc();
  storage.memory.reset(memory);
  storage.begin = static_cast<unsigned char*>(memory) + misalignment;
  std::memcpy(storage.begin, bytes.data(), storage.bytes);
  return storage;
}

void write_text(std::ofstream& out, const void* data, size_t size) {
  const int64_t count = static_cast<int64_t>(size);
  out.write(reinterpret_cast<const char*>(&count), sizeof count);
  out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
}

void run_one(Reader& in, std::ofstream& out) {
  const std::string operation = in.text();
  emulation::options = in.read<emulation::Options>();
  std::vector<Storage> storages;
  std::vector<Array> arrays(static_cast<size_t>(in.read<int64_t>()));
  for (Array& array : arrays) {
    storages.push_back(read_storage(in));
    array.dtype = in.read<int32_t>();
    array.dims = in.read<int32_t>();
    for (int64_t& size : array.shape) size = in.read<int64_t>();
    for (int64_t& stride : array.strides) stride = in.read<int64_t>();
  }
  for (size_t i = 0; i < arrays.size(); ++i) {
    arrays[i].name = storages[i].name.c_str();
    arrays[i].data = storages[i].begin;
  }
  std::vector<Number> numbers(static_cast<size_t>(in.read<int64_t>()));
  std::vector<std::string> names;
  for (Number& number : numbers) {
    names.push_back(in.text());
    number.value = in.read<double>();
  }
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i].name = names[i].c_str();

  const std::string problem = perform(
      operation.c_str(), {arrays.data(), numbers.data(), static_cast<int64_t>(arrays.size()),
                          static_cast<int64_t>(numbers.size())});
  write_text(out, problem.data(), problem.size());
  for (const Storage& storage : storages) write_text(out, storage.begin, storage.bytes);
  out.flush();
}

}  // namespace
}  // namespace fiqa_fast::test

int main(int count, char** arguments) {
  if (count != 3) {
    fprintf(stderr, "usage: %s CALLS ANSWERS\n", arguments[0]);
    return 2;
  }
  fiqa_fast::test::Reader in(arguments[1]);
  std::ofstream out(arguments[2], std::ios::binary);
  for (int64_t left = in.read<int64_t>(); left > 0; --left) fiqa_fast::test::run_one(in, out);
  return 0;
}
