// Segments of another process's pool, mapped here to be read.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "native/copy/gpu.h"
#include "native/driver/error.h"

namespace baton::share {

class Import {
 public:
  // Maps the memory behind fds[i] at base + segments[i] * segment_bytes of a fresh address range, readable by
  // `gpu` and not writable. The descriptors stay the caller's, who can close them at once.
  static Result<std::unique_ptr<Import>> open(const Gpu& gpu, uint64_t segment_bytes,
                                              std::span<const uint64_t> segments, std::span<const int32_t> fds);
  // Waits for what this process has under way on the GPU, and lets the memory go.
  ~Import();
  Import(const Import&) = delete;
  Import& operator=(const Import&) = delete;

  uint64_t base() const { return base_; }
  // As the destructor, but says what went wrong. Everything that can be let go is.
  Status close();

 private:
  Import(const Gpu& gpu, uint64_t segment_bytes) : gpu_(gpu), segment_bytes_(segment_bytes) {}
  Status map(uint64_t segment, int32_t fd);
  Status make_readable();
  // Why memory that is mapped at these segments cannot be read by this GPU, if it is that; else `error` as it is.
  Error explained(Error error, std::span<const uint64_t> segments) const;

  const Gpu& gpu_;
  uint64_t segment_bytes_;
  uint64_t base_ = 0;
  uint64_t reserved_bytes_ = 0;
  std::vector<uint64_t> mapped_;  // segments
};

}  // namespace baton::share
