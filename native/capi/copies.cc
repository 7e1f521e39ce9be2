#include <memory>
#include <string>
#include <vector>

#include "native/capi/guard.h"
#include "native/copy/checksum_items.h"
#include "native/copy/copy_plan.h"
#include "native/copy/kernel_module.h"

using baton::Status;
using baton::capi::guarded;
using baton::capi::required;

struct baton_copy_plan {
  std::unique_ptr<baton::copy::CopyPlan> plan;
};

namespace {

baton::Result<baton::copy::Conversion> conversion_of(uint32_t value) {
  if (value <= BATON_ROUNDED) return static_cast<baton::copy::Conversion>(value);
  return baton::Error{.code = "INVALID_ARGUMENT",
                      .message = "There is no such conversion.",
                      .expected = "BATON_PLAIN (0) or BATON_ROUNDED (1)",
                      .found = std::to_string(value),
                      .action = "Give one of these.",
                      .driver_result = std::nullopt};
}

}  // namespace

baton_status baton_copy_plan_create(int32_t device, const baton_run* runs, uint64_t count, baton_copy_plan** out) {
  return guarded([&]() -> Status {
    BATON_TRY(required({out}));
    *out = nullptr;
    if (count > 0) BATON_TRY(required({runs}));
    BATON_ASSIGN(const baton::Gpu* gpu, baton::Gpu::get(device));
    std::vector<baton::copy::Run> wanted;
    wanted.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      BATON_ASSIGN(const auto conversion, conversion_of(runs[i].conversion));
      wanted.push_back({runs[i].slot, runs[i].src_offset, runs[i].dst, runs[i].bytes, conversion});
    }
    BATON_ASSIGN(auto plan, baton::copy::CopyPlan::create(*gpu, wanted));
    *out = new baton_copy_plan{std::move(plan)};
    return {};
  });
}

baton_status baton_copy_plan_execute(baton_copy_plan* plan, const uint64_t* bases, uint64_t slots,
                                     baton_copy_report* report) {
  return guarded([&]() -> Status {
    BATON_TRY(required({plan}));
    if (slots > 0) BATON_TRY(required({bases}));
    BATON_ASSIGN(const baton::copy::CopyReport done, plan->plan->execute({bases, slots}));
    if (report != nullptr) *report = {done.bytes, done.runs, done.total_ns, done.simulated_ns};
    return {};
  });
}

baton_status baton_copy_plan_destroy(baton_copy_plan* plan) {
  return guarded([&]() -> Status {
    delete plan;
    return {};
  });
}

baton_status baton_kernels_load(int32_t device) {
  return guarded([&]() -> Status {
    BATON_ASSIGN(const baton::Gpu* gpu, baton::Gpu::get(device));
    const baton::CurrentContext current(*gpu);
    BATON_TRY(current.status());
    BATON_TRY(baton::copy::KernelModule::of(*gpu));
    return {};
  });
}

baton_status baton_checksum(int32_t device, const baton_checksum_item* items, uint64_t count, int32_t indices_only,
                            uint64_t* sums, uint64_t groups) {
  return guarded([&]() -> Status {
    if (count > 0) BATON_TRY(required({items}));
    if (groups > 0) BATON_TRY(required({sums}));
    BATON_ASSIGN(const baton::Gpu* gpu, baton::Gpu::get(device));
    std::vector<baton::copy::ChecksumItem> wanted;
    wanted.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      BATON_ASSIGN(const auto conversion, conversion_of(items[i].conversion));
      wanted.push_back({items[i].address, items[i].first_element, items[i].elements, items[i].element_bytes,
                        items[i].group, conversion});
    }
    return baton::copy::checksum_items(*gpu, wanted, indices_only != 0, {sums, groups});
  });
}
