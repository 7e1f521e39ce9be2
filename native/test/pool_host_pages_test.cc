// Host memory in large pages.
#include <fstream>

#include "native/pool/host_pages.h"
#include "native/test/pool_support.h"

namespace baton::test {
namespace {

constexpr uint64_t kLargePage = 2 * kMiB;
constexpr uint64_t kPage = 4096;

struct Mapping {
  Mapping(int fd, uint64_t offset, uint64_t size) : bytes(size), memory(pool::map_shared(fd, offset, size)) {}
  ~Mapping() { munmap(memory, bytes); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  uint64_t bytes;
  std::byte* memory;
};

uint64_t resident_pages(const Mapping& mapping) {
  std::vector<unsigned char> pages((mapping.bytes + kPage - 1) / kPage);
  if (mincore(mapping.memory, mapping.bytes, pages.data()) != 0) abort();
  return static_cast<uint64_t>(std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; }));
}

// Bytes of the mapping that the kernel maps by large pages, as it says itself.
uint64_t large_bytes(const Mapping& mapping) {
  std::ifstream maps("/proc/self/smaps");
  char begin[32];
  snprintf(begin, sizeof(begin), "%lx-", reinterpret_cast<uint64_t>(mapping.memory));
  bool here = false;
  for (std::string line; std::getline(maps, line);) {
    if (line.find('-') < 20 && line.find(' ') > line.find('-')) here = line.rfind(begin, 0) == 0;
    if (here && line.rfind("ShmemPmdMapped:", 0) == 0) return std::stoull(line.substr(15)) << 10;
  }
  return 0;
}

bool kernel_makes_large_pages() {
  const MemoryFile file(kLargePage);
  const Mapping mapping(file.fd(), 0, kLargePage);
  mapping.memory[0] = std::byte{1};
  return madvise(mapping.memory, kLargePage, 25 /* MADV_COLLAPSE */) == 0;
}

TEST(HostPages, AddressesAndPlacesInTheFileAgree) {
  const MemoryFile file(16 * kMiB);
  for (const uint64_t offset : {uint64_t{0}, kPage, kLargePage - kPage, kLargePage, 5 * kMiB + 3 * kPage}) {
    const Mapping mapping(file.fd(), offset, 9 * kMiB - kPage);
    ASSERT_NE(mapping.memory, nullptr);
    EXPECT_EQ((reinterpret_cast<uint64_t>(mapping.memory) - offset) % kLargePage, 0U) << offset;
  }
  EXPECT_EQ(pool::map_shared(-1, 0, kLargePage), nullptr);
  EXPECT_EQ(errno, EBADF);
}

TEST(HostPages, AllIsBroughtInWhereverItBeginsAndEnds) {
  for (const uint64_t begin : {uint64_t{0}, kPage, kLargePage - kPage, kLargePage}) {
    for (const uint64_t bytes : {kPage, kLargePage, kLargePage + kPage, 5 * kMiB, 40 * kMiB}) {
      const MemoryFile file(begin + bytes);
      const Mapping mapping(file.fd(), begin, bytes);
      ASSERT_EQ(pool::bring_in(file.fd(), begin, mapping.memory, bytes), 0);
      EXPECT_EQ(resident_pages(mapping), bytes / kPage) << bytes << " bytes at " << begin;
    }
  }
}

TEST(HostPages, AreLargeWhereTheKernelMakesThem) {
  if (!kernel_makes_large_pages()) GTEST_SKIP() << "this kernel makes no large pages of a memfd";
  constexpr uint64_t kBytes = 66 * kMiB;
  const MemoryFile file(kBytes);
  const Mapping mapping(file.fd(), 0, kBytes);
  ASSERT_EQ(pool::bring_in(file.fd(), 0, mapping.memory, kBytes), 0);
  // The kernel may lack a large page now and then.
  EXPECT_GE(large_bytes(mapping), kBytes / 2);
}

TEST(HostPages, WhatIsThereStays) {
  constexpr uint64_t kBytes = 40 * kMiB;
  for (const uint64_t at : {uint64_t{0}, 3 * kMiB, 17 * kMiB + 5, kBytes - 1}) {
    const MemoryFile file(kBytes);
    const Mapping mapping(file.fd(), 0, kBytes);
    mapping.memory[at] = std::byte{0xAB};
    ASSERT_EQ(pool::bring_in(file.fd(), 0, mapping.memory, kBytes), 0);
    for (uint64_t i = 0; i < kBytes; ++i)
      ASSERT_EQ(mapping.memory[i], i == at ? std::byte{0xAB} : std::byte{0}) << i;
  }
}

// What another process brought in is not made anew.
TEST(HostPages, ComeOnceForAllThatMapThem) {
  constexpr uint64_t kBytes = 8 * kMiB;
  const MemoryFile file(kBytes);
  const Mapping first(file.fd(), 0, kBytes);
  ASSERT_EQ(pool::bring_in(file.fd(), 0, first.memory, kBytes), 0);
  first.memory[kBytes / 2] = std::byte{7};
  const Mapping second(file.fd(), 0, kBytes);
  ASSERT_EQ(pool::bring_in(file.fd(), 0, second.memory, kBytes), 0);
  EXPECT_EQ(second.memory[kBytes / 2], std::byte{7});
}

TEST(HostPages, WithoutAFileBehindThemTheyAreAnError) {
  const MemoryFile file(kLargePage);
  const Mapping mapping(file.fd(), 0, 3 * kLargePage);
  EXPECT_NE(pool::bring_in(file.fd(), 0, mapping.memory, 3 * kLargePage), 0);
}

}  // namespace
}  // namespace baton::test
