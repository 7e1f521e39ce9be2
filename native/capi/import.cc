#include "native/share/import.h"

#include "native/capi/guard.h"

using baton::Status;
using baton::capi::guarded;
using baton::capi::required;

struct baton_import {
  std::unique_ptr<baton::share::Import> import;
};

baton_status baton_import_open(int32_t device, uint64_t segment_bytes, const uint64_t* segments, const int32_t* fds,
                               uint64_t count, baton_import** out, uint64_t* base) {
  return guarded([&]() -> Status {
    BATON_TRY(required({segments, fds, out, base}));
    *out = nullptr;
    BATON_ASSIGN(const baton::Gpu* gpu, baton::Gpu::get(device));
    BATON_ASSIGN(auto import, baton::share::Import::open(*gpu, segment_bytes, {segments, count}, {fds, count}));
    *base = import->base();
    *out = new baton_import{std::move(import)};
    return {};
  });
}

baton_status baton_import_close(baton_import* import) {
  return guarded([&]() -> Status {
    if (import == nullptr) return {};
    const std::unique_ptr<baton_import> owned(import);
    return owned->import->close();
  });
}
