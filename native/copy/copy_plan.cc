#include "native/copy/copy_plan.h"

#include <algorithm>
#include <string>

#include "native/copy/clock.h"

namespace baton::copy {
namespace {

constexpr uint64_t kFastBytes = 16;  // what a lane moves at once when source and destination agree

// Bytes that are read for `bytes` that are written.
uint64_t read_for(Conversion conversion, uint64_t bytes) {
  return conversion == Conversion::kRounded ? 2 * bytes : bytes;
}

bool same(const Run& a, const Run& b) {
  return a.slot == b.slot && a.conversion == b.conversion && a.src_offset == b.src_offset && a.dst == b.dst &&
         a.bytes == b.bytes;
}

bool continues(const Run& a, const Run& b) {
  return a.slot == b.slot && a.conversion == b.conversion && a.dst + a.bytes == b.dst &&
         a.src_offset + read_for(a.conversion, a.bytes) == b.src_offset;
}

Status check(const Run& run) {
  if (run.conversion == Conversion::kNone) return {};
  const bool whole = run.src_offset % sizeof(uint32_t) == 0 && (run.dst | run.bytes) % sizeof(uint16_t) == 0;
  if (run.conversion == Conversion::kRounded && whole) return {};
  return Error{.code = "INVALID_ARGUMENT",
               .message = "A run of a copy plan cannot be converted.",
               .expected = "conversion 0, or 1 with whole elements: float32 at a multiple of 4, bfloat16 at one of 2",
               .found = "conversion " + std::to_string(static_cast<unsigned>(run.conversion)) + " of " +
                        std::to_string(run.bytes) + " bytes from " + std::to_string(run.src_offset) + " to " +
                        std::to_string(run.dst),
               .action = "Convert elements, not bytes.",
               .driver_result = std::nullopt};
}

Error overlap(const Run& a, const Run& b) {
  return Error{.code = "COPY_RUNS_OVERLAP",
               .message = "Two runs of a copy plan write the same bytes.",
               .expected = "runs whose destinations do not overlap",
               .found = std::to_string(a.bytes) + " bytes at " + std::to_string(a.dst) + " and " +
                        std::to_string(b.bytes) + " bytes at " + std::to_string(b.dst),
               .action = "Keep only the run that should win.",
               .driver_result = std::nullopt};
}

}  // namespace

Result<std::vector<CopyPiece>> pieces_of(std::span<const Run> runs) {
  std::vector<Run> sorted;
  sorted.reserve(runs.size());
  for (const Run& run : runs) {
    BATON_TRY(check(run));
    if (run.bytes > 0) sorted.push_back(run);
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const Run& a, const Run& b) { return a.dst < b.dst; });

  std::vector<Run> joined;
  for (const Run& run : sorted) {
    if (!joined.empty() && same(joined.back(), run)) continue;
    if (!joined.empty() && joined.back().dst + joined.back().bytes > run.dst) return overlap(joined.back(), run);
    if (!joined.empty() && continues(joined.back(), run)) {
      joined.back().bytes += run.bytes;
    } else {
      joined.push_back(run);
    }
  }

  std::vector<CopyPiece> pieces;
  for (const Run& run : joined) {
    for (uint64_t done = 0; done < run.bytes;) {
      const uint64_t most = kCopyPieceBytes - (run.dst + done) % kFastBytes;
      const uint64_t bytes = std::min(most, run.bytes - done);
      pieces.push_back({run.slot, static_cast<uint16_t>(bytes), run.conversion,
                        run.src_offset + read_for(run.conversion, done), run.dst + done});
      done += bytes;
    }
  }
  return pieces;
}

Result<std::unique_ptr<CopyPlan>> CopyPlan::create(const Gpu& gpu, std::span<const Run> runs) {
  BATON_ASSIGN(const std::vector<CopyPiece> pieces, pieces_of(runs));
  const CurrentContext current(gpu);
  BATON_TRY(current.status());
  BATON_ASSIGN(const KernelModule* kernels, KernelModule::of(gpu));
  BATON_ASSIGN(Stream stream, Stream::create(gpu));
  std::unique_ptr<CopyPlan> plan(new CopyPlan(gpu, *kernels, std::move(stream)));
  plan->runs_ = runs.size();
  plan->pieces_ = pieces.size();
  for (const CopyPiece& piece : pieces) {
    plan->bytes_ += piece.bytes;
    plan->slots_ = std::max<uint64_t>(plan->slots_, piece.slot + uint64_t{1});
  }
  if (pieces.empty()) return plan;

  const uint64_t bases_bytes = plan->slots_ * sizeof(uint64_t);
  const uint64_t pieces_bytes = pieces.size() * sizeof(CopyPiece);
  BATON_ASSIGN(DeviceBuffer table, DeviceBuffer::create(gpu, bases_bytes + pieces_bytes));
  plan->table_ = std::make_unique<DeviceBuffer>(std::move(table));
  BATON_TRY(gpu.driver().cuMemcpyHtoDAsync(plan->table_->address() + bases_bytes, pieces.data(), pieces_bytes,
                                           plan->stream_.get()));
  BATON_TRY(plan->stream_.synchronize());
  return plan;
}

Result<CopyReport> CopyPlan::execute(std::span<const uint64_t> bases) {
  if (bases.size() < slots_) {
    return Error{.code = "INVALID_ARGUMENT",
                 .message = "The copy plan names more sources than were given.",
                 .expected = "at least " + std::to_string(slots_) + " source addresses",
                 .found = std::to_string(bases.size()),
                 .action = "Give the address of every source that the plan was made with.",
                 .driver_result = std::nullopt};
  }
  const std::lock_guard lock(executing_);
  const uint64_t begin_ns = now_ns();
  const CurrentContext current(gpu_);
  BATON_TRY(current.status());
  BATON_TRY(gpu_.driver().cuCtxSynchronize());
  const uint64_t simulated_before_ns = stream_.simulated_ns();
  if (pieces_ > 0) {
    const uint64_t bases_bytes = slots_ * sizeof(uint64_t);
    BATON_TRY(gpu_.driver().cuMemcpyHtoDAsync(table_->address(), bases.data(), bases_bytes, stream_.get()));
    const CopyRunsParameters parameters{table_->as<const CopyPiece>(bases_bytes), table_->as<const uint64_t>(),
                                        pieces_};
    BATON_TRY(kernels_.copy_runs(parameters, stream_));
    BATON_TRY(stream_.synchronize());
  }
  return CopyReport{bytes_, runs_, now_ns() - begin_ns,
                    simulated_difference_ns(simulated_before_ns, stream_.simulated_ns())};
}

}  // namespace baton::copy
